"""Readers of video data sets in several formats, and uniform clips (`formats.list_items`, `clips.read_clips`)."""
