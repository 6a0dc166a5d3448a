"""Training video autoencoders from scratch."""
