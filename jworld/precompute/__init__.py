"""Precomputation of training records from folders of videos: the command and its library."""
