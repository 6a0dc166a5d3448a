"""State, step, optimizers, checkpoints and metrics; knows neither systems nor models."""
