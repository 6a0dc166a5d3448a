"""Safetensors files: opened with one sentence for each mistake, and written completely or not at all."""

import contextlib
import os
import pathlib
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from jworld.utils import errors, files, finite, limits


def save(
    arrays: Mapping[str, np.ndarray], path: str | pathlib.Path, *, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file atomically.

    Raises:
      OSError: it cannot be written, for example because the disk is full; its type in the library is another.
      UserError: an array has NaN or infinite values, which readers refuse.
    """
    for name, array in arrays.items():
        check_finite(array, name, path, fix=f"in {array.dtype} it is not written; check where the numbers come from")
    with files.replacing(path) as temporary:
        try:
            safetensors.numpy.save_file(dict(arrays), temporary, None if metadata is None else dict(metadata))
        except safetensors.SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


@contextlib.contextmanager
def opened(
    path: str | pathlib.Path, *, fix: str, name: str = "", what: str = "a safetensors file"
) -> Iterator[safetensors.safe_open]:
    """Open a file for reading as numpy arrays; also inside the context the library's errors become a `UserError`.

    Args:
      path: the file.
      fix: what to do about an error, the end of the sentence.
      name: the file in errors (default: its path).
      what: kind of file in errors.

    Raises:
      UserError: the file is absent, unreadable, damaged, or of another format.
    """
    try:
        with open_file(path, fix=fix, name=name, what=what) as file:
            yield file
    except safetensors.SafetensorError as error:
        raise errors.UserError(f"{name or path} is damaged ({errors.one_line(error)}): {fix}") from error


def open_file(
    path: str | pathlib.Path, *, fix: str, name: str = "", what: str = "a safetensors file"
) -> safetensors.safe_open:
    """Open a file for reading as numpy arrays; arguments and errors as for `opened`."""
    path, name = pathlib.Path(path), name or str(path)
    _refuse_other_files(path, name, fix, what)
    try:
        return safetensors.safe_open(path, framework="numpy")
    except (OSError, MemoryError, safetensors.SafetensorError) as error:
        raise errors.UserError(f"{name} is not {what}, or is damaged ({errors.one_line(error)}): {fix}") from error


def _refuse_other_files(path: pathlib.Path, name: str, fix: str, what: str) -> None:
    """Check what the library would map into memory: a regular file whose header fits in it and within the limit."""
    start = files.read_start(path, 8, what=what, fix=fix, name=name)
    size = path.stat().st_size
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
    if length > min(limits.HEADER_BYTES, size - 8):
        raise errors.UserError(f"{name} is not {what}, or incomplete: its {size:,} bytes do not hold its header: {fix}")


def header(file: safetensors.safe_open, key: str, path: str | pathlib.Path, *, fix: str) -> dict[str, Any]:
    """Return the JSON object under `key` of a file's header.

    Raises:
      UserError: there is none.
    """
    text = (file.metadata() or {}).get(key)
    if text is None:
        raise errors.UserError(f"{path} has no entry {key!r} in its header, so it is a file of another kind: {fix}")
    try:
        value = files.parse_json(text)
        if isinstance(value, dict):
            return value
        problem = f"it is {files.describe(value)}"
    except ValueError as error:
        problem = str(error)
    raise errors.UserError(f"{path}: the entry {key!r} of its header is not a JSON object ({problem}): {fix}")


def check_finite(array: np.ndarray, name: str, path: str | pathlib.Path, *, fix: str) -> np.ndarray:
    """Return an array of a file.

    Raises:
      UserError: it has NaN or infinite values.
    """
    if not finite.all_finite(array):
        raise errors.UserError(f"{path}: {name} has NaN or infinite values: {fix}")
    return array
