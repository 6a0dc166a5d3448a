"""Networks in safetensors files: parameters by path, and JSON in the header."""

import pathlib
from collections.abc import Callable, Mapping
from typing import TypeVar

import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx

from jworld.utils import tensor_files
from jworld.utils.errors import UserError

Network = TypeVar("Network", bound=nnx.Module)


def save(model: nnx.Module, path: str | pathlib.Path, header: Mapping[str, str], *, dtype: str) -> None:
    """Write a network atomically, with its parameters as `dtype`, which a network that loads them does not keep.

    Raises:
      UserError: a parameter is too large for `dtype`.
    """
    # safetensors stores memory without reordering, so it must be in C order.
    with np.errstate(over="ignore"):
        arrays = {
            "/".join(map(str, name)): np.asarray(leaf[...], dtype, order="C")
            for name, leaf in nnx.to_flat_state(nnx.state(model, nnx.Param))
        }
    if large := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise UserError(f"{large[0]} has values that {dtype} cannot hold: choose float32")
    tensor_files.save(arrays, path, metadata=header)


def load(path: str | pathlib.Path, make: Callable[[], Network], *, remedy: str) -> Network:
    """Return the network that `make` describes, with the parameters of a file of `save`.

    Raises:
      UserError: the file is absent or damaged, its tensors are not exactly the network's, or they have NaN or infinite
        values; `remedy` ends the sentence.
    """
    graphdef, abstract = nnx.split(nnx.eval_shape(make))
    leaves = {"/".join(map(str, name)): (name, leaf) for name, leaf in nnx.to_flat_state(abstract)}
    with tensor_files.opened(path, fix=remedy) as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, not a dict
        expected = {name: leaf.shape for name, (_, leaf) in leaves.items()}
        if found != expected:
            wrong = sorted(dict(found.items() ^ expected.items()))
            raise UserError(f"{path} has other tensors than its config requires, at {', '.join(wrong[:4])}: {remedy}")
        filled = [
            (keys, leaf.replace(jnp.asarray(_read(file, name, path, remedy), leaf.dtype)))
            for name, (keys, leaf) in leaves.items()
        ]
    model: Network = nnx.merge(graphdef, nnx.from_flat_state(filled))
    return model


def _read(file: safetensors.safe_open, name: str, path: str | pathlib.Path, remedy: str) -> np.ndarray:
    return tensor_files.check_finite(file.get_tensor(name), name, path, fix=remedy)
