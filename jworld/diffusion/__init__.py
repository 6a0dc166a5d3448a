"""Diffusion times and noise, as pure functions."""
