"""Streaming reader of JSON arrays and JSON lines, for published files that are larger than memory."""

import io
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from jworld.utils import files, limits
from jworld.utils.errors import UserError, one_line

_CHUNK = 1 << 20


def read(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Yield every object of the file.

    Raises:
      UserError: the file is absent or malformed; the rows before the damage have been yielded.
    """
    try:
        with files.open_binary(path) as content, io.TextIOWrapper(content, encoding="utf-8-sig") as file:
            first = file.read(1)
            while first.isspace():
                first = file.read(1)
            rows = _array(file) if first == "[" else _lines(first, file)
            number = -1
            for number, row in enumerate(rows):
                if not isinstance(row, dict):
                    raise ValueError(f"row {number} is a {type(row).__name__}, expected an object")
                yield row
            if number < 0:
                raise ValueError("it has no rows")
    except OSError as error:
        raise UserError(f"{path} {files.problem(error)}: correct the path") from error
    except RecursionError as error:
        raise UserError(f"{path} is not readable JSON (it is nested too deeply): correct it") from error
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON ({one_line(error)}): correct it") from error


def _lines(first: str, file: Any) -> Iterator[Any]:
    line = first + file.readline(limits.ROW_BYTES)
    while line:
        _refuse_long(line)
        if line.strip():
            yield json.loads(line)
        line = file.readline(limits.ROW_BYTES)


def _refuse_long(text: str) -> None:
    if len(text) >= limits.ROW_BYTES:
        raise ValueError(f"a row has more than {limits.ROW_BYTES:,} characters")


def _array(file: Any) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    text, ended = "", False
    while True:
        text = text.lstrip(", \t\r\n")
        if text.startswith("]"):
            return
        try:
            value, end = decoder.raw_decode(text)
            # A number at the end of a chunk may continue in the next.
            if end < len(text) or ended:
                yield value
                text = text[end:]
                continue
        except json.JSONDecodeError:
            if ended:
                raise
        chunk = file.read(_CHUNK)
        ended = not chunk
        if ended and not text:
            raise ValueError("the array is not closed")
        text += chunk
        _refuse_long(text)
