"""Cosmos-Predict2 transformer: Video2World and its image, action-conditioned and multiview variants."""
