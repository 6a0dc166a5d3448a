"""Atomic files: complete or absent, even if the writing program is killed."""

import contextlib
import json
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary path that becomes `path` if the body succeeds and is deleted otherwise.

    Processes that write the same file do not interfere.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(
    path: str | pathlib.Path, value: Any, *, indent: int | None = 1, sort_keys: bool = False, allow_nan: bool = True
) -> None:
    """Write a value as JSON; without `allow_nan` a number that is not finite raises a ValueError."""
    text = json.dumps(value, indent=indent, sort_keys=sort_keys, allow_nan=allow_nan)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
