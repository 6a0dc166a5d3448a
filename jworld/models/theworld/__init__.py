"""TheWorld: Gemma-3 that also reads the latents of a video autoencoder."""
