"""CogVideoX transformer with the control blocks of The Matrix."""
