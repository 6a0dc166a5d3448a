"""The Matrix: CogVideoX-2B in four stages, up to an endless stream in few steps."""
