"""Shard files of encoded records: Arrow IPC files with one record batch (payload and checksum) per record.

Files are memory-mapped, so a record is not copied before its batch is stacked. Arrow has no checksums; every record has
its own, which is compared at every read.
"""

import functools
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from jworld.utils.errors import UserError, one_line

SUFFIX = ".arrow"
# Operating systems allow about 1000 open files per process; records and text each use up to this number.
MAX_OPEN_SHARDS = 256
_SCHEMA = pa.schema([("payload", pa.large_binary()), ("xxh3_64", pa.uint64())])


class RecordFile:
    """Writer of one shard at a temporary path, which its owner renames or removes after `close`."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.records = 0
        self.bytes = 0
        self._file = pa.OSFile(str(path), "wb")
        self._writer = pa.ipc.new_file(self._file, _SCHEMA)

    def write(self, payload: bytes) -> None:
        """Append one encoded record; a `UserError` if the disk is full."""
        columns = [pa.array([payload], pa.large_binary()), pa.array([xxhash.xxh3_64_intdigest(payload)], pa.uint64())]
        try:
            self._writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
        except OSError as error:
            raise self._incomplete() from error
        self.records += 1
        self.bytes += len(payload)

    def close(self) -> None:
        """Complete the file; a `UserError` if it cannot be written completely. A second call does nothing."""
        try:
            if not self._file.closed:
                self._writer.close()
        except OSError as error:
            raise self._incomplete() from error
        finally:
            self._file.close()

    def _incomplete(self) -> UserError:
        return UserError(f"shard {self.path} could not be written completely: is the disk full?")


class _Shard:
    """A memory-mapped file; an `OSError` or `pa.ArrowInvalid` if it is not a shard."""

    def __init__(self, path: pathlib.Path) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        if self._reader.schema != _SCHEMA:
            raise pa.ArrowInvalid("it has other columns")
        # Arrow does not guarantee that threads may share a reader; finding a record takes microseconds.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._reader.num_record_batches)

    def __getitem__(self, index: int) -> memoryview:
        try:
            with self._lock:
                row = self._reader.get_batch(index)
            # The buffer itself: an Arrow scalar would be a copy.
            payload, digest = memoryview(row["payload"].buffers()[2]), row["xxh3_64"][0].as_py()
        except (pa.ArrowException, OSError, IndexError, AttributeError, TypeError) as error:
            raise ValueError(one_line(error)) from error
        if xxhash.xxh3_64_intdigest(payload) != digest:
            raise ValueError("its bytes differ from the stored checksum")
        return payload

    def checksum(self, index: int) -> int:
        """Return the stored checksum of a record, without its payload; a `ValueError` if it cannot be read."""
        try:
            with self._lock:
                return int(self._reader.get_batch(index)["xxh3_64"][0].as_py())
        except (pa.ArrowException, OSError, IndexError, TypeError) as error:
            raise ValueError(one_line(error)) from error


class ShardReader:
    """Random access to the payloads of several shards by a common index; only some shards are open at a time."""

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
        """Return the payload without a copy; a `ValueError` if the record is corrupt."""
        shard, row = self._find(index)
        try:
            return self._open(self._paths[shard])[row]
        except (pa.ArrowException, OSError) as error:
            raise ValueError(one_line(error)) from error

    def checksum(self, index: int) -> int:
        """Return the stored checksum of a record, without its payload.

        Raises:
          UserError: its shard is damaged.
        """
        shard, row = self._find(index)
        try:
            return self._open(self._paths[shard]).checksum(row)
        except (ValueError, pa.ArrowException, OSError) as error:
            raise UserError(
                f"shard {self._paths[shard]}, record {row} is corrupt ({one_line(error)}): make the data set again"
            ) from error

    def _find(self, index: int) -> tuple[int, int]:
        """Return the number of the shard of a record, and its row there."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)


def open_shards(directory: pathlib.Path, shards: Sequence[Mapping[str, Any]]) -> ShardReader:
    """Open a manifest's list of shards; the `UserError` names a shard that is absent or corrupt."""
    paths = [directory / shard["file"] for shard in shards]
    for path, shard in zip(paths, shards, strict=True):
        if not path.is_file():
            raise UserError(f"shard {path} of the manifest is absent: make the data set again")
        try:
            count = len(_Shard(path))
        except (pa.ArrowException, OSError):
            count = 0
        if count != shard["records"]:
            found = f"{count} records" if count else "nothing readable"
            raise UserError(f"shard {path} holds {found}, expected {shard['records']} records: make the data set again")
    return ShardReader(paths, [shard["records"] for shard in shards])
