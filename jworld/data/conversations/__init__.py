"""Conversations about images: how they are written as tokens, where they are read from, how they become batches."""
