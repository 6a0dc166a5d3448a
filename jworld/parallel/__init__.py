"""Meshes, the table of logical axes, sequence-parallel layouts, and start-up of multi-process runs."""
