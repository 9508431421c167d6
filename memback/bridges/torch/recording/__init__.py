"""A step of a PyTorch module, recorded: watched, or run on fake tensors."""
