"""Time and noise as pure functions."""
