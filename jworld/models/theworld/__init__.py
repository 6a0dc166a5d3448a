"""TheWorld: Gemma-3 that also receives the latents of a video autoencoder."""
