"""Files of records of bytes: ArrayRecord (https://github.com/google/array_record), and TFRecord of TensorFlow.

A TFRecord file is a sequence of these fields: length of the record (8 bytes, little endian), checksum of the length,
the record, checksum of the record. Neither format needs TensorFlow.
"""

import contextlib
import os
import pathlib
import struct
from collections.abc import Generator, Iterator
from typing import Any

from array_record.python import array_record_module

from jworld.utils import crc32c, files, limits
from jworld.utils.errors import UserError, one_line

#: Formats by the part of a file's name that begins its suffix.
FORMATS = ("array_record", "tfrecord")
_FIX = "download or write it again"
# A record is read for itself, so nothing is read ahead.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_LENGTH = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")


def records(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """Yield (place, content) of every record of a file; `record` reads one of them by its place.

    Raises:
      UserError: the file is absent, damaged, or neither an ArrayRecord nor a TFRecord file by its name.
    """
    with _reported(path):
        if _is_array_record(path):
            with _open_array(path) as reader:
                for number in range(_count(reader)):
                    yield number, _read_array(reader, number)
        else:
            with files.open_binary(path) as file:
                size = os.fstat(file.fileno()).st_size
                while (place := file.tell()) < size:
                    yield place, _read_framed(file, size)


def record(path: pathlib.Path, place: int) -> bytes:
    """Return one record of a file; places and errors as in `records`."""
    with _reported(path):
        if _is_array_record(path):
            with _open_array(path) as reader:
                return _read_array(reader, place)
        with files.open_binary(path) as file:
            file.seek(place)
            return _read_framed(file, os.fstat(file.fileno()).st_size)


def count(path: pathlib.Path) -> int:
    """Return the number of records of an ArrayRecord file, without reading them; errors as in `records`."""
    with _reported(path), _open_array(path) as reader:
        return _count(reader)


@contextlib.contextmanager
def _reported(path: pathlib.Path) -> Generator[None, None, None]:
    """Turn errors of files and of the library into a `UserError` with the file's name."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} {files.problem(error)}: {_FIX}") from error
    except (ValueError, RuntimeError, IndexError, MemoryError) as error:
        # The library has no text for a file that ends too early.
        reason = one_line(error) if str(error) else "its end is absent or damaged"
        raise UserError(f"{path} is not a readable file of records ({reason}): {_FIX}") from error


def _is_array_record(path: pathlib.Path) -> bool:
    found = [name for name in FORMATS if f".{name}" in path.name]
    if len(found) != 1:
        raise UserError(f"{path} is neither an .array_record nor a .tfrecord file by its name: give another file")
    return found[0] == "array_record"


@contextlib.contextmanager
def _open_array(path: pathlib.Path) -> Generator[Any, None, None]:
    # The library does not report a file that it cannot open.
    with files.open_binary(path) as file:
        file.read(1)
    reader = array_record_module.ArrayRecordReader(str(path), _OPTIONS)
    try:
        yield reader
    finally:
        reader.close()


def _count(reader: Any) -> int:
    number: int = reader.num_records()
    if not 1 <= number <= limits.RECORDS:
        raise ValueError(f"it has {number:,} records, expected 1 to {limits.RECORDS:,}")
    return number


def _read_array(reader: Any, number: int) -> bytes:
    found: list[bytes] = reader.read([number])
    return found[0]


def _read_framed(file: Any, size: int) -> bytes:
    place = file.tell()
    head = file.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        raise ValueError("it ends within a record")
    length, checksum = _LENGTH.unpack(head)
    if crc32c.masked(head[:8]) != checksum:
        raise ValueError(f"the checksum of the length at byte {place:,} does not match")
    if length > min(size - place - len(head) - _CHECKSUM.size, limits.RECORD_BYTES):
        raise ValueError(f"the record at byte {place:,} declares {length:,} bytes, more than it has or may have")
    content: bytes = file.read(length)
    if crc32c.masked(content) != _CHECKSUM.unpack(file.read(_CHECKSUM.size))[0]:
        raise ValueError(f"the checksum of the record at byte {place:,} does not match")
    return content
