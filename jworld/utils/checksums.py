"""JSON files with a checksum over all bytes but its own, so that any change is noticed.

It protects against damage and against editing by mistake; it is not a signature.
"""

import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import xxhash

from jworld.utils import errors, files

KEY = "checksum"
_ENTRY = re.compile(rb'"checksum": "([^"]*)"')


def write_json(path: str | pathlib.Path, value: Mapping[str, Any]) -> None:
    """Write an object atomically, with its checksum as the last entry."""
    text = (json.dumps({**value, KEY: ""}, indent=1) + "\n").encode()
    # The last entry with this name is that of the object itself.
    start = text.rindex(b'"checksum": ""') + len(b'"checksum": "')
    with files.replacing(path) as temporary:
        temporary.write_bytes(text[:start] + _digest(text).encode() + text[start:])


def _digest(text: bytes) -> str:
    return f"xxh3-128:{xxhash.xxh3_128_hexdigest(text)}"


def read_json(path: str | pathlib.Path, *, fix: str) -> dict[str, Any]:
    """Read an object without its checksum; earlier files have none and are read without it.

    Raises:
      UserError: the file cannot be read, holds something else, or differs from its checksum; `fix` ends the sentence.
    """
    path = pathlib.Path(path)
    value: dict[str, Any] = files.read_json(path, fix=fix)
    if KEY in value:
        verify(path, files.read_bytes(path, fix=fix), value, fix=fix)
    return value


def verify(path: pathlib.Path, content: bytes, value: dict[str, Any], *, fix: str) -> None:
    """Compare the content of a file with its checksum, and remove that from its `value`.

    Raises:
      UserError: there is none, or they differ.
    """
    stored = value.pop(KEY, None)
    found = list(_ENTRY.finditer(content))
    if stored is None or not found or found[-1][1].decode(errors="replace") != stored:
        raise errors.UserError(f"{path} has no valid checksum: restore it, or {fix}")
    start, end = found[-1].span(1)
    if _digest(content[:start] + content[end:]) != stored:
        raise errors.UserError(
            f"{path} differs from its checksum, so it was damaged or edited: restore it from a copy, or {fix}"
        )
