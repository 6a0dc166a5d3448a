"""Cosmos-Predict2 Video2World: a video continued from its first frames, a caption and, in one variant, actions."""
