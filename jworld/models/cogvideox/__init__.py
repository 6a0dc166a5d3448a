"""The CogVideoX transformer with The Matrix' control blocks."""
