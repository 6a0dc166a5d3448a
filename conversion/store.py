"""Orbax checkpoint, written and read some rows at a time, so that the whole model is never in memory.

The format is the usual one: Orbax restores the checkpoint onto any mesh, and every device reads only the chunks that it
needs. Each chunk has a CRC-32C, which TensorStore compares whenever it reads the chunk. For writing, the leaves of the
tree are lazy arrays.
"""

import asyncio
import contextlib
import dataclasses
import math
import pathlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from conversion import pieces
from jworld.training import array_store, storage, weights
from jworld.utils import errors

#: Bytes of a chunk on disk, small enough for the processor's cache; shards are read as whole chunks.
_CHUNK = 1 << 20
#: Threads that convert and write; some of them wait for the disk.
_THREADS = pieces.THREADS + 1
_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """Array that is read only during writing, some rows of its first axis at a time, by several threads.

    Attributes:
      read: index of rows, with whole other axes -> their values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[tuple[slice, ...]], np.ndarray]

    @property
    def row_size(self) -> int:
        """Size of a row in bytes."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def band(self) -> int:
        """Number of rows that are read together."""
        return min(self.shape[0], max(1, pieces.BAND // self.row_size))

    def bands(self) -> Iterator[tuple[slice, ...]]:
        """Yield the indexes to read, in order."""
        if len(self.shape) < 2:
            yield tuple(slice(0, size) for size in self.shape)
            return
        for start in range(0, self.shape[0], self.band):
            rows = slice(start, min(self.shape[0], start + self.band))
            yield (rows, *(slice(0, size) for size in self.shape[1:]))


class _LazyHandler(ocp.type_handlers.TypeHandler):  # type: ignore[misc]  # Orbax has no types.
    """Handler that writes lazy arrays in the format of Orbax's own arrays, some rows of a few of them at a time."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._writing = threading.Lock()

    def stop(self) -> None:
        """Write nothing more: return when all threads have stopped, which an exception in another one does not end."""
        self._stopped.set()
        with self._writing:
            pass

    def typestr(self) -> str:
        return "jax.Array"

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        raise AssertionError("lazy arrays are only written")

    async def deserialize(self, infos: Sequence[Any], args: Sequence[Any] | None = None) -> Sequence[Any]:
        raise AssertionError("lazy arrays are only written")

    async def serialize(
        self, values: Sequence[LazyArray], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[Any]:
        # Created together: syncing them to disk one by one takes many times as long.
        stores = await asyncio.gather(*map(_create, values, infos))
        bands = [(value, store, index) for value, store in zip(values, stores, strict=True) for index in value.bands()]

        def write(band: tuple[LazyArray, Any, tuple[slice, ...]]) -> None:
            value, store, index = band
            if self._stopped.is_set():
                raise asyncio.CancelledError
            store[index].write(value.read(index), can_reference_source_data_indefinitely=True).result()

        def write_all() -> None:
            with self._writing:
                pieces.process(bands, write, _THREADS)

        await asyncio.to_thread(write_all)
        return []


async def _create(array: LazyArray, info: Any) -> Any:
    """Create an array on disk, with chunks that never span two large rows or two bands."""
    await info.await_path_creation()
    chunk = () if not array.shape else (1 if array.row_size >= _CHUNK else array.band, *array.shape[1:])
    spec = ocp.type_handlers.get_json_tspec_write(
        info,
        use_ocdbt=True,
        global_shape=array.shape,
        local_shape=chunk,
        dtype=array.dtype,
        process_index=0,
        arg=ocp.SaveArgs(chunk_byte_size=_CHUNK),
    )
    spec["metadata"]["codecs"] = _CODECS
    return await tensorstore.open(tensorstore.Spec(spec), create=True, open=True, context=info.ts_context)


def save(directory: pathlib.Path, arrays: Mapping[str, LazyArray]) -> None:
    """Write arrays, by "/"-joined paths, as one checkpoint, one array after the other.

    Raises:
      UserError: the disk is full.
    """
    storage.install()
    # Without a handler of jax.Array, Orbax would log a warning; no leaf is one.
    lazy = _LazyHandler()
    registry = ocp.type_handlers.create_type_handler_registry(
        (LazyArray, lazy), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    # Compression hardly reduces weights; without it they are written and restored twice as fast.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, use_zarr3=True, type_handler_registry=registry)
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(directory.absolute(), args=ocp.args.PyTreeSave(weights.nested(arrays)))
    except BaseException as error:
        lazy.stop()
        if problem := storage.disk_problem(error):
            raise errors.UserError(f"{directory} does not fit on the disk: {problem}; free some space") from error
        raise


class Stored:
    """Checkpoint on disk, with shapes and dtypes of its arrays, which are read in parts by any thread.

    Attributes:
      directory: the checkpoint.
      arrays: path -> shape and dtype.

    Raises:
      UserError: the checkpoint is missing or damaged.
    """

    def __init__(self, directory: pathlib.Path):
        self.directory = directory.absolute()
        with self._damage():
            self._stored = array_store.StoredArrays(directory)
        self.arrays = self._stored.arrays

    def read(self, path: str, index: tuple[slice, ...] = ()) -> np.ndarray:
        """Read an array, or the part of slices of its first axes.

        Raises:
          UserError: the array is damaged.
        """
        with self._damage():
            return self._stored.read(path, index)

    def chunk_rows(self, path: str) -> int:
        """Return the rows of an array that are stored together."""
        return self._stored.chunk_rows[path]

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            storage.silence()
            # The cause follows two paths.
            reason = errors.one_line(error, limit=500)
            raise errors.UserError(
                f"the weights in {self.directory} are damaged or missing ({type(error).__name__}: {reason}); "
                "write that folder again, or restore it from a copy"
            ) from error
