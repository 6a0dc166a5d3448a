"""The Cosmos-Predict2 transformer: Video2World, its image, action-conditioned and multiview relatives."""
