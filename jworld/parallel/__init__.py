"""Meshes, the table of logical axes, and sequence-parallel layouts."""
