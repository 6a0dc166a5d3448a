"""Files of encoded records: ArrayRecord, written with "group_size:1,uncompressed" so that one random read touches one.

Every record is a block with a checksum of its own. ArrayRecord checks it and copies the record once.
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python import array_record_module

from jworld.errors import UserError

SUFFIX = ".arrayrecord"
# Systems allow a process about 1000 open files; records and text have their own.
MAX_OPEN_SHARDS = 256


class RecordFile:
    """One shard in the making, at a temporary path that its owner renames or removes after `close`."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.records = 0
        self.bytes = 0
        self._writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")

    def write(self, payload: bytes) -> None:
        """Append one encoded record; `UserError` where the disk is full."""
        try:
            self._writer.write(payload)
        except RuntimeError as error:
            raise self._incomplete() from error
        self.records += 1
        self.bytes += len(payload)

    def close(self) -> None:
        """Complete the file; `UserError` where it does not hold what was written. A second call does nothing."""
        if not self._writer.is_open():
            return
        try:
            self._writer.close()
        except RuntimeError as error:
            raise self._incomplete() from error
        # A writer on a full disk says nothing of it when it is closed.
        found = _open_shard(self.path)
        if not found.ok() or found.num_records() != self.records:
            raise self._incomplete()

    def _incomplete(self) -> UserError:
        return UserError(f"shard {self.path} could not be written completely: is the disk full?")


class ShardReader:
    """Random access to the payloads of several shards, counted through; of many shards only some are open at a time."""

    def __init__(self, paths: Sequence[pathlib.Path], counts: Sequence[int]) -> None:
        self._paths, self._counts = paths, counts
        self._ends = np.cumsum(counts)
        self._open = functools.lru_cache(MAX_OPEN_SHARDS)(_open_shard)

    def __reduce__(self) -> tuple[type["ShardReader"], tuple[Any, ...]]:
        # Worker processes open the files themselves.
        return ShardReader, (self._paths, self._counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> bytes:
        """`ValueError` where the record is corrupt."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        try:
            payload: bytes = self._open(self._paths[shard]).read([index - first])[0]
        except (IndexError, RuntimeError) as error:
            raise ValueError(str(error)) from error
        return payload


def _open_shard(path: pathlib.Path) -> Any:
    return array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")


def open_shards(directory: pathlib.Path, shards: Sequence[Mapping[str, Any]]) -> ShardReader:
    """A manifest's list of shards; `UserError` names one that is absent or corrupt."""
    paths = [directory / shard["file"] for shard in shards]
    for path, shard in zip(paths, shards, strict=True):
        if not path.is_file():
            raise UserError(f"shard {path} of the manifest is absent: make the data set again")
        reader = _open_shard(path)
        if not reader.ok() or reader.num_records() != shard["records"]:
            found = f"{reader.num_records()} records" if reader.ok() else "nothing readable"
            raise UserError(f"shard {path} holds {found}, expected {shard['records']} records: make the data set again")
    return ShardReader(paths, [shard["records"] for shard in shards])
