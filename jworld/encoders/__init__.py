"""Encoders of videos, text and images, and what a data set or a run stores of them."""
