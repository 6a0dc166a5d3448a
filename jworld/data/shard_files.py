"""Files of records: payloads one after the other, each at a multiple of 8 bytes, then where each of them lies.

The file ends with one row (offset, bytes, checksum) per record, the checksum of these rows, their number and a
signature, all little-endian uint64. A record is read with one system call into memory that arrays can be made of
without a copy. Checksums are sums of 64-bit words: they cost next to nothing and change with any changed byte.
"""

import functools
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jworld.errors import UserError

SUFFIX = ".records"
# Systems allow a process about 1000 open files; records and text have their own.
MAX_OPEN_SHARDS = 256
_WORD = np.dtype("<u8")
_SIGNATURE = int.from_bytes(b"jwshard1", "little")


def _checksum(data: Any) -> int:
    return int(np.add.reduce(np.frombuffer(data, _WORD)))


class RecordFile:
    """One shard in the making, at a temporary path that its owner renames or removes after `close`."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.bytes = 0
        self._rows: list[tuple[int, int, int]] = []
        self._file = path.open("wb", buffering=0)

    @property
    def records(self) -> int:
        """Written so far."""
        return len(self._rows)

    def write(self, payload: bytes) -> None:
        """Append one encoded record; `UserError` where the disk is full."""
        padded = payload + bytes(-len(payload) % _WORD.itemsize)
        self._rows.append((self.bytes, len(payload), _checksum(padded)))
        self._write(padded)
        self.bytes += len(padded)

    def close(self) -> None:
        """Complete the file; a second call does nothing."""
        if self._file.closed:
            return
        with self._file:
            rows = np.array(self._rows, _WORD).tobytes()
            self._write(rows + np.array([_checksum(rows), self.records, _SIGNATURE], _WORD).tobytes())

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise UserError(f"shard {self.path} could not be written completely: is the disk full?") from error


class _Shard:
    """An open file; `ValueError` or `OSError` where it is none that was completed."""

    def __init__(self, path: pathlib.Path) -> None:
        self._file = path.open("rb", buffering=0)
        size, end = path.stat().st_size, 3 * _WORD.itemsize
        if size < end:
            raise ValueError("too short")
        checksum, count, signature = self._read(size - end, end).view(_WORD).tolist()
        width = count * end
        if signature != _SIGNATURE or width > size - end:
            raise ValueError("no index at its end")
        rows = self._read(size - end - width, width)
        if _checksum(rows) != checksum:
            raise ValueError("damaged index")
        self.rows: list[list[int]] = rows.view(_WORD).reshape(count, 3).tolist()

    def read(self, record: int) -> memoryview:
        offset, size, checksum = self.rows[record]
        padded = self._read(offset, size + -size % _WORD.itemsize)
        if _checksum(padded) != checksum:
            raise ValueError("its checksum is another")
        return padded.data.toreadonly()[:size]

    def _read(self, offset: int, size: int) -> np.ndarray:
        data = np.empty(size, np.uint8)
        done = 0
        while done < size:
            got = os.preadv(self._file.fileno(), [data.data[done:]], offset + done)
            if not got:
                raise ValueError(f"file ends at byte {offset + done}")
            done += got
        return data


class ShardReader:
    """Random access to the payloads of several shards, counted through; of many shards only some are open at a time."""

    def __init__(self, paths: Sequence[pathlib.Path], counts: Sequence[int]) -> None:
        self._paths, self._counts = paths, counts
        self._ends = np.cumsum(counts)
        self._open = functools.lru_cache(MAX_OPEN_SHARDS)(_Shard)

    def __reduce__(self) -> tuple[type["ShardReader"], tuple[Any, ...]]:
        # Worker processes open the files themselves.
        return ShardReader, (self._paths, self._counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> memoryview:
        """Read-only bytes; `ValueError` or `OSError` where it is corrupt."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        return self._open(self._paths[shard]).read(index - first)


def open_shards(directory: pathlib.Path, shards: Sequence[Mapping[str, Any]]) -> ShardReader:
    """A manifest's list of shards; `UserError` names one that is absent or corrupt."""
    paths = [directory / shard["file"] for shard in shards]
    for path, shard in zip(paths, shards, strict=True):
        if not path.is_file():
            raise UserError(f"shard {path} of the manifest is absent: make the data set again")
        try:
            count = len(_Shard(path).rows)
        except (OSError, ValueError) as error:
            found = f"nothing readable ({error})"
        else:
            found = f"{count} records"
        if found != f"{shard['records']} records":
            raise UserError(f"shard {path} holds {found}, expected {shard['records']} records: make the data set again")
    return ShardReader(paths, [shard["records"] for shard in shards])
