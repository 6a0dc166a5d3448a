"""Poses, action labels, projective position encoding and memory selection, as pure functions."""
