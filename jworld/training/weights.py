"""Parameters as one safetensors file, by path: starter weights, and what a user carries from run to run."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from jworld import errors
from jworld.training import state as train_state


def save(params: nnx.State, path: pathlib.Path, dtype: np.dtype | type) -> None:
    """Write every leaf, cast to `dtype`, under its path."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    arrays = {train_state.leaf_name(name): np.asarray(leaf).astype(dtype) for name, leaf in leaves}
    partial = path.with_name(path.name + ".partial")
    safetensors.numpy.save_file(arrays, partial)
    partial.replace(path)


def load(path: pathlib.Path, abstract: nnx.State) -> nnx.State:
    """Read what `save` wrote into the shapes, dtypes and shardings of `abstract`.

    Raises:
      UserError: the file is absent or damaged, or its tensors are not exactly those of the model.
    """
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            _check(path, abstract, found)
            return jax.tree_util.tree_map_with_path(
                lambda name, leaf: _placed(file.get_tensor(train_state.leaf_name(name)), leaf), abstract
            )
    except FileNotFoundError as error:
        raise errors.UserError(f"{path} is missing: name a folder with weights, or train from nothing") from error
    except safetensors.SafetensorError as error:
        raise errors.UserError(f"{path} is damaged ({error}): fetch the file again") from error


def _placed(value: np.ndarray, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    value = value.astype(leaf.dtype)
    if leaf.sharding is None:
        return jnp.asarray(value)
    return jax.make_array_from_callback(leaf.shape, leaf.sharding, lambda index: value[index])


def _check(path: pathlib.Path, abstract: nnx.State, found: dict[str, tuple[int, ...]]) -> None:
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
