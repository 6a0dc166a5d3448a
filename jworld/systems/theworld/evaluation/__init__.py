"""Benchmarks of answers to questions about images: published ones, and questions about recorded episodes."""
