"""Steps of several ranks: DDP, FSDP2, tensor parallelism."""
