"""Gemma-3: language model, SigLIP vision tower and projector."""
