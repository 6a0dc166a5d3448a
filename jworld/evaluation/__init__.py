"""Evaluation code that systems share: results, accuracy tables, contact sheets, held-out episodes."""
