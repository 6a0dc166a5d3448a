"""Conversion between PyTorch checkpoints and jworld parameters: one engine, one key table per checkpoint family."""

# First, because it handles Ctrl-C from then on.
import jworld  # noqa: F401
