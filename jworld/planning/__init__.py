"""Cost of a training step on a topology, compiled ahead of time for devices that need not exist."""
