"""Parameters by path, without training state: a safetensors file (starter weights) or an Orbax checkpoint."""

import collections
import dataclasses
import functools
import math
import pathlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from jworld.parallel import mesh
from jworld.training import array_store, checksums, storage
from jworld.training import state as train_state
from jworld.utils import errors, finite, nnx_types, tensor_files

#: Bytes that are read at once, and reads at the same time.
_PIECE = 32 << 20
_AHEAD = 2
#: Receives every parameter with its path as soon as it is on its devices, and returns what takes its place.
Take: TypeAlias = Callable[[str, jax.Array], Any]
#: Differences from the model that an error lists.
_SHOWN = 12


def save(params: nnx_types.State, path: pathlib.Path, dtype: np.dtype | type) -> None:
    """Write every leaf, cast to `dtype`, under its path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays = {train_state.leaf_name(name): np.asarray(leaf).astype(dtype) for name, leaf in leaves}
    tensor_files.save(arrays, path)


def load(path: pathlib.Path, abstract: nnx_types.State, take: Take | None = None) -> nnx_types.State:
    """Load a file of `save` into the shapes, dtypes and shardings of `abstract`; `take` may replace every parameter.

    Raises:
      UserError: the file is absent or damaged, has NaN or infinite values, or its tensors are not exactly those of the
        model.
    """
    fix = "download the file again, or name another folder with weights"
    with tensor_files.opened(path, fix=fix) as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        _check(path, abstract, found)

        def read(place: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> Any:
            name = train_state.leaf_name(place)
            # After the cast, in which a large number may become infinite.
            with np.errstate(over="ignore"):
                value = file.get_tensor(name).astype(leaf.dtype)
            placed = _placed(tensor_files.check_finite(value, name, path, fix=fix), leaf)
            return placed if take is None else take(name, placed)

        params: nnx_types.State = jax.tree_util.tree_map_with_path(read, abstract)
        return params


def restore(
    directory: pathlib.Path,
    abstract: nnx_types.State,
    entries: Mapping[str, Mapping[str, Any]],
    take: Take | None = None,
) -> nnx_types.State:
    """Restore imported weights into the shapes, dtypes and shardings of `abstract`.

    Every device gets only its parts, which are compared with their checksums and cast while they are read. At the peak
    the host has `_AHEAD` pieces more than what is restored.

    Args:
      directory: an Orbax checkpoint whose leaves are named by path.
      abstract: the parameters to read, all that the checkpoint has.
      entries: {"shape"} of every leaf as written.
      take: may replace every parameter.

    Raises:
      UserError: the checkpoint is absent or damaged, has NaN or infinite values, or its leaves are not exactly those of
        the model.
    """

    _check(directory, abstract, {name: tuple(entry["shape"]) for name, entry in entries.items()})
    leaves = {train_state.leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    try:
        found = _read(directory, leaves, take or (lambda _, array: array))
    except errors.UserError:
        raise
    except Exception as error:
        storage.silence()
        # The cause follows two paths.
        reason = errors.one_line(error, limit=500)
        raise errors.UserError(
            f"the weights in {directory} are damaged ({type(error).__name__}: {reason}): import them again"
        ) from error
    params: nnx_types.State = jax.tree.unflatten(jax.tree.structure(abstract), [found[name] for name in leaves])
    return params


def replaced(params: nnx_types.State, take: Take) -> nnx_types.State:
    """Return parameters with the results of `take` in their places, one after another."""
    changed: nnx_types.State = jax.tree_util.tree_map_with_path(
        lambda path, leaf: take(train_state.leaf_name(path), leaf), params
    )
    return changed


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Rows of a part of a leaf that some devices of this process need.

    Attributes:
      name: path of the leaf.
      shape: shape of the part.
      spans: start and stop in the leaf, for every axis.
      start: first row in the part.
      devices: those that need it.
    """

    name: str
    shape: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    start: int
    devices: Sequence[jax.Device]

    def placed(self, parts: dict[jax.Device, jax.Array], copies: Sequence[jax.Array]) -> None:
        """Put the copies of the piece on its devices into their parts."""
        for device, rows in zip(self.devices, copies, strict=True):
            if rows.shape == self.shape:
                parts[device] = rows
                continue
            # A mesh of the caller's would take all its devices.
            with jax.set_mesh(mesh.make_mesh(devices=[device])):
                if self.start == 0:
                    parts[device] = jnp.zeros(self.shape, rows.dtype, device=device)
                parts[device] = _with_rows(parts[device], rows, self.start)


@functools.partial(jax.jit, donate_argnums=0)
def _with_rows(part: jax.Array, rows: jax.Array, start: jax.Array | int) -> jax.Array:
    """Write rows into a part, in place. As words: XLA converts bfloat16 to float32 and back on CPUs."""
    words = checksums.WORDS[part.dtype.itemsize]
    given, new = (jax.lax.bitcast_convert_type(x, words) for x in (part, rows))
    return jax.lax.bitcast_convert_type(jax.lax.dynamic_update_slice_in_dim(given, new, start, axis=0), part.dtype)


def _pieces(name: str, leaf: jax.ShapeDtypeStruct, chunk_rows: int) -> Iterator[_Piece]:
    """Return the parts of a leaf in pieces of at most `_PIECE` bytes, or of the rows that are stored together."""
    for spans, devices in mesh.local_shards(leaf.shape, _sharding(leaf)).items():
        shape = tuple(stop - start for start, stop in spans)
        if not shape:
            yield _Piece(name, shape, spans, 0, devices)
            continue
        (first, last), *others = spans
        row = math.prod(shape[1:]) * np.dtype(leaf.dtype).itemsize
        rows = max(_PIECE // max(row * chunk_rows, 1), 1) * chunk_rows
        for start in range(first, last, rows):
            yield _Piece(name, shape, ((start, min(start + rows, last)), *others), start - first, devices)


def _read(directory: pathlib.Path, leaves: Mapping[str, jax.ShapeDtypeStruct], take: Take) -> dict[str, Any]:
    """Read all leaves, in a few threads: reading, checksums, checks and copies of several pieces overlap.

    The largest leaf comes first: its pieces are on the host and on its device at once, which matters least before all
    others.
    """
    stored = array_store.StoredArrays(directory)
    names = sorted(leaves, key=lambda name: -array_store.size(leaves[name]))
    pieces = [piece for name in names for piece in _pieces(name, leaves[name], stored.chunk_rows[name])]
    left = collections.Counter(piece.name for piece in pieces)
    parts: dict[jax.Device, jax.Array] = {}
    found: dict[str, Any] = {}

    memory = threading.local()

    def fetch(piece: _Piece) -> list[jax.Array]:
        # New memory would take longer than what is done with it.
        sizes, dtype = [stop - start for start, stop in piece.spans], np.dtype(leaves[piece.name].dtype)
        count = math.prod(sizes) * dtype.itemsize
        if getattr(memory, "bytes", np.empty(0)).size < count:
            memory.bytes = _unaligned(count)
        host = memory.bytes[:count].view(dtype).reshape(sizes)
        stored.fill(piece.name, tuple(slice(*span) for span in piece.spans), host).result()
        if not finite.all_finite(host):
            raise errors.UserError(
                f"the weights in {directory}: {piece.name} has NaN or infinite values as {dtype}: import them again, "
                "or give the model another dtype"
            )
        copies = [jax.device_put(host, device) for device in piece.devices]
        return cast(list[jax.Array], jax.block_until_ready(copies))

    for piece, copies in _in_threads(fetch, pieces):
        piece.placed(parts, copies)
        left[piece.name] -= 1
        if not left[piece.name]:
            leaf = leaves[piece.name]
            arrays = list(parts.values())
            array = jax.make_array_from_single_device_arrays(leaf.shape, _sharding(leaf), arrays, dtype=leaf.dtype)
            found[piece.name] = take(piece.name, array)
            parts = {}
    return found


def _unaligned(count: int) -> np.ndarray:
    """Return bytes that no array of JAX takes over, as it does with aligned memory on CPUs, with `may_alias=False` too.

    The memory is used again, and such an array could not be donated to a training step.
    """
    buffer = np.empty(count + 128, np.uint8)
    start = -buffer.ctypes.data % 64 + 4
    return buffer[start : start + count]


def _in_threads(call: Callable[[_Piece], list[jax.Array]], pieces: Iterable[_Piece]) -> Iterator[tuple[_Piece, Any]]:
    """Return every piece in its order with the result of a call, `_AHEAD` of which have begun."""
    pending: collections.deque[tuple[_Piece, futures.Future[list[jax.Array]]]] = collections.deque()
    with futures.ThreadPoolExecutor(_AHEAD) as pool:
        for piece in pieces:
            if len(pending) == _AHEAD:
                first, result = pending.popleft()
                yield first, result.result()
            pending.append((piece, pool.submit(call, piece)))
        for first, result in pending:
            yield first, result.result()


def _sharding(leaf: jax.ShapeDtypeStruct) -> jax.sharding.Sharding:
    return leaf.sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nest by path: {"a/b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def _placed(value: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if leaf.sharding is None:
        return jnp.asarray(value)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])


def _check(path: pathlib.Path, abstract: nnx_types.State, found: dict[str, tuple[int, ...]]) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(abstract)
    expected = {train_state.leaf_name(name): leaf.shape for name, leaf in leaves}
    problems = [f"missing {name}" for name in expected.keys() - found.keys()]
    problems += [f"unexpected {name}" for name in found.keys() - expected.keys()]
    problems += [
        f"{name} is {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    if problems:
        shown = "; ".join(sorted(problems)[:_SHOWN]) + (
            f"; and {len(problems) - _SHOWN} more" * (len(problems) > _SHOWN)
        )
        raise errors.UserError(
            f"{path} holds another model: {shown}: give config.model the values of the file, or choose other weights"
        )
