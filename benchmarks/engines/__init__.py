"""One module an engine. Each has ``build(workload) -> step``; ``step()`` gives the loss and the gradients by name."""
