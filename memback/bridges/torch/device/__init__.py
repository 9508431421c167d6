"""What a training step takes on a GPU that is not there: PyTorch's choices for CUDA, on tensors without memory."""
