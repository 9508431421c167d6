"""Plans for PyTorch modules."""
