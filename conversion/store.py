"""Orbax checkpoint, written and read one parameter at a time, so that the whole model is never in memory.

The format is the usual one: Orbax restores the checkpoint onto any mesh, and every device reads only the chunks that it
needs. For writing, the leaves of the tree are lazy arrays, which are read some rows at a time.
"""

import asyncio
import contextlib
import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from etils import epath

from jworld.training import storage, weights
from jworld.utils import errors

#: Bytes of a chunk on disk; shards are read as whole chunks.
_CHUNK = 4 << 20
#: Bytes of the rows that are read together.
_BAND = 64 << 20
#: Bytes of concurrent writes.
_PENDING = 128 << 20


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """Array that is read only during writing, some rows of its first axis at a time.

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
        return min(self.shape[0], max(1, _BAND // self.row_size))

    def bands(self) -> Iterator[tuple[slice, ...]]:
        """Yield the indexes to read, in order."""
        if not self.shape:
            yield ()
            return
        for start in range(0, self.shape[0], self.band):
            rows = slice(start, min(self.shape[0], start + self.band))
            yield (rows, *(slice(0, size) for size in self.shape[1:]))


class _LazyHandler(ocp.type_handlers.TypeHandler):  # type: ignore[misc]  # Orbax has no types.
    """Handler that writes lazy arrays one after the other, in the format of Orbax's own arrays."""

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
        writes = _Writes()
        for value, store in zip(values, stores, strict=True):
            for index in value.bands():
                await writes.add(store[index], value.read(index))
        await writes.finish()
        return []


class _Writes:
    """Pending writes: many concurrent writes make fewer files, but each of them uses memory."""

    def __init__(self) -> None:
        self._futures: list[Any] = []
        self._bytes = 0

    async def add(self, store: Any, data: np.ndarray) -> None:
        self._futures.append(store.write(data, can_reference_source_data_indefinitely=True))
        self._bytes += data.nbytes
        if self._bytes >= _PENDING:
            await self.finish()

    async def finish(self) -> None:
        for future in self._futures:
            await future
        self._futures, self._bytes = [], 0


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
    return await tensorstore.open(tensorstore.Spec(spec), create=True, open=True, context=info.ts_context)


def save(directory: pathlib.Path, arrays: Mapping[str, LazyArray]) -> None:
    """Write arrays, by "/"-joined paths, as one checkpoint, one array after the other.

    Raises:
      UserError: the disk is full.
    """
    storage.install()
    # Without a handler of jax.Array, Orbax would log a warning; no leaf is one.
    registry = ocp.type_handlers.create_type_handler_registry(
        (LazyArray, _LazyHandler()), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    # Compression hardly reduces weights; without it they are written and restored twice as fast.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(directory.absolute(), args=ocp.args.PyTreeSave(weights.nested(arrays)))
    except Exception as error:
        if problem := storage.disk_problem(error):
            raise errors.UserError(f"{directory} does not fit on the disk: {problem}; free some space") from error
        raise


class Stored:
    """Checkpoint on disk, with shapes and dtypes of its arrays, which are read one at a time.

    Attributes:
      arrays: path -> shape and dtype.

    Raises:
      UserError: the checkpoint is missing or damaged.
    """

    def __init__(self, directory: pathlib.Path):
        self.directory = directory.absolute()
        self._ahead: dict[str, np.ndarray] = {}
        # The handler is used directly: items of a run's checkpoints lack metadata that the checkpointer needs.
        self._handler = ocp.PyTreeCheckpointHandler()
        with self._damage():
            tree = self._handler.metadata(epath.Path(self.directory)).tree
            leaves = jax.tree_util.tree_leaves_with_path(tree)
        keys = [[str(key.key) for key in path] for path, _ in leaves]
        # A variable of a model is stored as a node with one leaf, "value".
        self._keys = {"/".join(key).removesuffix("/value"): key for key in keys}
        self.arrays = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
            for path, (_, leaf) in zip(self._keys, leaves, strict=True)
        }

    def read(self, path: str) -> np.ndarray:
        """Read one whole array; small arrays are read together with the next ones.

        Raises:
          UserError: the array is damaged.
        """
        if path not in self._ahead:
            self._ahead = self._read(self._following(path))
        return self._ahead.pop(path)

    def _following(self, path: str) -> list[str]:
        """Return `path` and the paths after it, as many as fit into a band."""
        paths = list(self.arrays)
        chosen, size = [path], self._size(path)
        for other in paths[paths.index(path) + 1 :]:
            size += self._size(other)
            if size > _BAND:
                break
            chosen.append(other)
        return chosen

    def _size(self, path: str) -> int:
        array = self.arrays[path]
        return int(math.prod(array.shape) * array.dtype.itemsize)

    def _read(self, paths: Sequence[str]) -> dict[str, np.ndarray]:
        keys = {path: "/".join(self._keys[path]) for path in paths}
        item = weights.nested(dict.fromkeys(keys.values(), 0))
        restore = weights.nested({key: ocp.RestoreArgs(restore_type=np.ndarray) for key in keys.values()})
        with self._damage():
            args = ocp.args.PyTreeRestore(item=item, restore_args=restore, partial_restore=True)
            tree = self._handler.restore(epath.Path(self.directory), args=args)
            return {path: functools.reduce(lambda node, key: node[key], self._keys[path], tree) for path in paths}

    @contextlib.contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            storage.silence()
            reason = errors.one_line(error)
            raise errors.UserError(
                f"the weights in {self.directory} are damaged or missing ({type(error).__name__}: {reason}); "
                "write that folder again, or restore it from a copy"
            ) from error
