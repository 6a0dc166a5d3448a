"""Conversion between PyTorch checkpoints and jworld parameters: one engine, one key table per checkpoint family."""
