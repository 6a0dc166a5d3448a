"""Gemma-3: the language model, the SigLIP vision tower and the projector between them."""
