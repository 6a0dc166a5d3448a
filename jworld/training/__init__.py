"""Training state, step, optimizers, checkpoints and metrics; independent of systems and models."""
