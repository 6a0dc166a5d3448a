"""Parameters by path, without training state: a safetensors file (starter weights) or an Orbax checkpoint."""

import collections
import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np

from jworld.parallel import mesh
from jworld.training import array_store, checksums, storage
from jworld.training import state as train_state
from jworld.utils import errors, nnx_types, tensor_files

#: Bytes on the host, read but not yet on their devices.
_IN_FLIGHT = 256 << 20
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
    the host has `_IN_FLIGHT` bytes, or the largest part, more than what is restored.

    Args:
      directory: an Orbax checkpoint whose leaves are named by path.
      abstract: the parameters to read, all that the checkpoint has.
      entries: {"shape"} of every leaf as written.
      take: may replace every parameter.

    Raises:
      UserError: the checkpoint is absent or damaged, has NaN or infinite values, or its leaves are not exactly those of
        the model.
    """

    def taken(name: str, array: jax.Array) -> Any:
        if take is None:
            return array
        _check_finite(directory, {name: array})
        return take(name, array)

    _check(directory, abstract, {name: tuple(entry["shape"]) for name, entry in entries.items()})
    leaves = {train_state.leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
    try:
        found = _read(array_store.StoredArrays(directory), leaves, taken)
    except errors.UserError:
        raise
    except Exception as error:
        storage.silence()
        # The cause follows two paths.
        reason = errors.one_line(error, limit=500)
        raise errors.UserError(
            f"the weights in {directory} are damaged ({type(error).__name__}: {reason}): import them again"
        ) from error
    if take is None:
        _check_finite(directory, found)
    params: nnx_types.State = jax.tree.unflatten(jax.tree.structure(abstract), [found[name] for name in leaves])
    return params


def replaced(params: nnx_types.State, take: Take) -> nnx_types.State:
    """Return parameters with the results of `take` in their places, one after another."""
    changed: nnx_types.State = jax.tree_util.tree_map_with_path(
        lambda path, leaf: take(train_state.leaf_name(path), leaf), params
    )
    return changed


def _check_finite(directory: pathlib.Path, arrays: Mapping[str, jax.Array]) -> None:
    if leaf := checksums.find_not_finite(dict(arrays)):
        raise errors.UserError(
            f"the weights in {directory}: {leaf} has NaN or infinite values as {arrays[leaf].dtype}: import them "
            "again, or give the model another dtype"
        )


@dataclasses.dataclass(frozen=True)
class _Part:
    """Part of a leaf that some devices of this process need, on its way there."""

    name: str
    devices: Sequence[jax.Device]
    host: np.ndarray
    reading: Any

    def place(self) -> list[jax.Array]:
        """Wait for the part, and copy it to its devices."""
        self.reading.result()
        # Memory of numpy's could not be donated to a training step.
        copies = [jax.device_put(self.host, device, may_alias=False) for device in self.devices]
        return cast(list[jax.Array], jax.block_until_ready(copies))


def _read(stored: array_store.StoredArrays, leaves: Mapping[str, jax.ShapeDtypeStruct], take: Take) -> dict[str, Any]:
    """Read all leaves; while one part is copied to its devices, TensorStore reads the next ones.

    The largest comes first: a part is on the host and on its device at once, which matters least before all others.
    """
    placed: dict[str, list[jax.Array]] = {name: [] for name in leaves}
    pending: collections.deque[_Part] = collections.deque()
    found: dict[str, Any] = {}

    def finish() -> None:
        part = pending.popleft()
        placed[part.name] += part.place()
        leaf = leaves[part.name]
        sharding = _sharding(leaf)
        if len(placed[part.name]) == len(sharding.addressable_devices):
            arrays = placed.pop(part.name)
            found[part.name] = take(
                part.name,
                jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays, dtype=leaf.dtype),
            )

    for name in sorted(leaves, key=lambda name: -array_store.size(leaves[name])):
        leaf = leaves[name]
        for spans, devices in mesh.local_shards(leaf.shape, _sharding(leaf)).items():
            index = tuple(slice(*span) for span in spans)
            host = np.empty([stop - start for start, stop in spans], leaf.dtype)
            while pending and sum(part.host.nbytes for part in pending) + host.nbytes > _IN_FLIGHT:
                finish()
            pending.append(_Part(name, devices, host, stored.fill(name, index, host)))
    while pending:
        finish()
    return found


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
