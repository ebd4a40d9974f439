"""The training loop, its checkpoints, and what it asks of the CPU."""
