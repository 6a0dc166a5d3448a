"""Recording of episodes: two simulated worlds, and the scripted explorer that moves through them."""
