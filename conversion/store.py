"""One Orbax checkpoint, written and read one parameter at a time: never the whole model in memory.

The checkpoint is an ordinary one, which Orbax restores onto any mesh, every device from the chunks that it needs. Only
its writing is special: a leaf of the tree is the promise of an array, and no array ever exists as a whole.
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

#: Bytes of a chunk on disk: a mesh reads its shards as whole chunks.
_CHUNK = 4 << 20
#: Bytes of the rows that are read together.
_BAND = 64 << 20
#: Bytes that are written at the same time.
_UNDER_WAY = 128 << 20


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array that is read when it is written, some rows of its first axis at a time.

    Attributes:
      read: index of these rows (and of the other axes, whole) -> their values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[tuple[slice, ...]], np.ndarray]

    @property
    def row_size(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def band(self) -> int:
        """Rows that are read together."""
        return min(self.shape[0], max(1, _BAND // self.row_size))

    def bands(self) -> Iterator[tuple[slice, ...]]:
        """What to read, in order."""
        if not self.shape:
            yield ()
            return
        for start in range(0, self.shape[0], self.band):
            rows = slice(start, min(self.shape[0], start + self.band))
            yield (rows, *(slice(0, size) for size in self.shape[1:]))


class _LazyHandler(ocp.type_handlers.TypeHandler):
    """Writes lazy arrays in turn, in the format of Orbax's own arrays."""

    def typestr(self) -> str:
        return "jax.Array"

    async def metadata(self, infos: Sequence[Any]) -> Sequence[Any]:
        raise AssertionError("lazy arrays are only written")

    async def deserialize(self, infos: Sequence[Any], args: Sequence[Any] | None = None) -> Sequence[Any]:
        raise AssertionError("lazy arrays are only written")

    async def serialize(
        self, values: Sequence[LazyArray], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[Any]:
        # Together, for what is made durable in turn takes many times as long.
        stores = await asyncio.gather(*map(_create, values, infos))
        writes = _Writes()
        for value, store in zip(values, stores, strict=True):
            for index in value.bands():
                await writes.add(store[index], value.read(index))
        await writes.finish()
        return []


class _Writes:
    """Writes under way: many together make few files, but all of them hold memory."""

    def __init__(self) -> None:
        self._futures: list[Any] = []
        self._bytes = 0

    async def add(self, store: Any, data: np.ndarray) -> None:
        self._futures.append(store.write(data, can_reference_source_data_indefinitely=True))
        self._bytes += data.nbytes
        if self._bytes >= _UNDER_WAY:
            await self.finish()

    async def finish(self) -> None:
        for future in self._futures:
            await future
        self._futures, self._bytes = [], 0


async def _create(array: LazyArray, info: Any) -> Any:
    """A new array on disk, whose chunks never reach over two large rows or two bands."""
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
    """Write arrays, named by "/"-joined paths, as one checkpoint; one after the other, row after row.

    Raises:
      UserError: the disk is full.
    """
    storage.install()
    # The handler of jax.Array is registered for its absence would be logged as a warning; no leaf is one.
    registry = ocp.type_handlers.create_type_handler_registry(
        (LazyArray, _LazyHandler()), (jax.Array, ocp.type_handlers.ArrayHandler())
    )
    # Weights hardly shrink, and uncompressed ones are written and restored twice as fast.
    handler = ocp.PyTreeCheckpointHandler(use_compression=False, type_handler_registry=registry)
    try:
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(directory.absolute(), args=ocp.args.PyTreeSave(weights.nested(arrays)))
    except Exception as error:
        if problem := storage.disk_problem(error):
            raise errors.UserError(f"{directory} does not fit on the disk: {problem}; free some space") from error
        raise


class Stored:
    """A checkpoint on disk: shapes and dtypes of its arrays, which are read one at a time.

    Attributes:
      arrays: path -> shape and dtype.

    Raises:
      UserError: there is none, or it is damaged.
    """

    def __init__(self, directory: pathlib.Path):
        self.directory = directory.absolute()
        self._ahead: dict[str, np.ndarray] = {}
        # The handler itself: items of a run's checkpoints have less metadata than the checkpointer looks for.
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
        """One array, whole; small ones are read together with those that follow.

        Raises:
          UserError: it is damaged.
        """
        if path not in self._ahead:
            self._ahead = self._read(self._following(path))
        return self._ahead.pop(path)

    def _following(self, path: str) -> list[str]:
        """`path` and those behind it, while they fit into the memory of a band."""
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
        return math.prod(array.shape) * array.dtype.itemsize

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
                "write that folder again, or put it back from a copy"
            ) from error
