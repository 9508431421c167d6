"""What PyTorch does on a GPU, without one: its caching allocator, its workspaces, the cards."""
