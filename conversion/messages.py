"""Values of untrusted files as safe text for messages."""

from collections.abc import Sequence
from typing import Any


def shown(value: Any) -> str:
    """Return a value from a file as safe text for a terminal: quoted, at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def listed(names: Sequence[str], most: int = 4) -> str:
    """Return the first names as safe text, and the number of the others."""
    text = ", ".join(shown(name) for name in names[:most])
    return text + (f" and {len(names) - most} more" if len(names) > most else "")
