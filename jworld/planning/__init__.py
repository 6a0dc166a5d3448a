"""What a training step costs on a topology: compiled ahead of time, for devices that need not exist."""
