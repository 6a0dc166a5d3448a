"""TheWorld: Gemma-3 that reads an image also as the latents of a world model."""
