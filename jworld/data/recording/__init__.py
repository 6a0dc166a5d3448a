"""Recorders of embedded data: two simulated worlds and the scripted explorer that walks through them."""
