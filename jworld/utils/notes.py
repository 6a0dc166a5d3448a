"""Notes of commands to their user: facts about an input that are neither results nor errors."""

import sys


def note(text: str) -> None:
    """Print one line to stderr; `text` is a sentence without a final period."""
    print(f"note: {text}", file=sys.stderr)


def warn(text: str) -> None:
    """Print one line about a probable mistake to stderr; `text` is a sentence without a final period."""
    print(f"warning: {text}", file=sys.stderr)
