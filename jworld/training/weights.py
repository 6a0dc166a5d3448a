"""Parameters by path, without training state: a safetensors file (starter weights) or an Orbax checkpoint."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy
from etils import epath

from jworld.training import checksums, storage
from jworld.training import state as train_state
from jworld.utils import errors, files, nnx_types


def save(params: nnx_types.State, path: pathlib.Path, dtype: np.dtype | type) -> None:
    """Write every leaf, cast to `dtype`, under its path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays = {train_state.leaf_name(name): np.asarray(leaf).astype(dtype) for name, leaf in leaves}
    with files.replacing(path) as temporary:
        safetensors.numpy.save_file(arrays, temporary)


def load(path: pathlib.Path, abstract: nnx_types.State) -> nnx_types.State:
    """Load a file of `save` into the shapes, dtypes and shardings of `abstract`.

    Raises:
      UserError: the file is absent or damaged, or its tensors are not exactly those of the model.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _check(path, abstract, found)
            params: nnx_types.State = jax.tree_util.tree_map_with_path(
                lambda name, leaf: _placed(file.get_tensor(train_state.leaf_name(name)), leaf), abstract
            )
            return params
    except FileNotFoundError as error:
        raise errors.UserError(f"{path} is missing: name a folder with weights, or train from scratch") from error
    except safetensors.SafetensorError as error:
        raise errors.UserError(f"{path} is damaged ({error}): download the file again") from error


def restore(
    directory: pathlib.Path, abstract: nnx_types.State, entries: Mapping[str, Mapping[str, Any]]
) -> nnx_types.State:
    """Restore an Orbax checkpoint whose leaves are named by path into the shapes, dtypes and shardings of `abstract`.

    Args:
      directory: the checkpoint.
      abstract: the parameters to read, all that the checkpoint has.
      entries: {"dtype", "shape", "checksum"} of every leaf as written; the checksum is `total` of its `row_sums`.

    Raises:
      UserError: the checkpoint is absent or damaged, or its leaves are not exactly those of the model.
    """
    _check(directory, abstract, {name: tuple(entry["shape"]) for name, entry in entries.items()})
    names = [train_state.leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(abstract)]
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    args = {
        name: ocp.ArrayRestoreArgs(sharding=leaf.sharding or default, global_shape=leaf.shape, dtype=leaf.dtype)
        for name, leaf in zip(names, jax.tree.leaves(abstract), strict=True)
    }
    try:
        tree = ocp.PyTreeCheckpointHandler().restore(
            epath.Path(directory.absolute()),
            args=ocp.args.PyTreeRestore(item=nested(dict.fromkeys(names, 0)), restore_args=nested(args)),
        )
    except Exception as error:
        storage.silence()
        reason = errors.one_line(error)
        raise errors.UserError(
            f"the weights in {directory} are damaged ({type(error).__name__}: {reason}): import them again"
        ) from error
    found = {train_state.leaf_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    _check_sums(directory, found, entries)
    params: nnx_types.State = jax.tree.unflatten(jax.tree.structure(abstract), [found[name] for name in names])
    return params


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


def _check_sums(directory: pathlib.Path, found: Mapping[str, jax.Array], entries: Mapping[str, Any]) -> None:
    """Compare checksums with those written, except for leaves whose dtype is now narrower."""
    wider = {
        name: array
        for name, array in found.items()
        if jnp.promote_types(array.dtype, entries[name]["dtype"]) == array.dtype
    }
    sums = {name: row_sums(array, entries[name]["dtype"]) for name, array in wider.items()}
    for name, value in sums.items():
        if int(total(value)) != entries[name]["checksum"]:
            raise errors.UserError(
                f"the weights in {directory} are damaged: {name} differs from what was written: import them again"
            )


@functools.partial(jax.jit, static_argnames="dtype")
def row_sums(array: jax.Array, dtype: str) -> jax.Array:
    """Compute the uint32 checksum in `dtype` of each row of the first axis.

    Stacked layers are processed one by one, to save memory.
    """

    def row(x: jax.Array) -> jax.Array:
        return checksums.array_checksum(x.astype(dtype))

    return jax.lax.map(row, array) if array.ndim > 2 else jax.vmap(row)(jnp.atleast_1d(array))


#: Checksum of an array from those of its rows.
total = jax.jit(checksums.array_checksum)


def _placed(value: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    value = value.astype(leaf.dtype)
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
        raise errors.UserError(
            f"{path} holds another model: {'; '.join(sorted(problems))}: give config.model the values of the file, "
            "or choose other weights"
        )
