"""Autoencoder files of every family: safetensors with parameters by path and the config in the header."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from jworld.models.autoencoders import linear, network
from jworld.models.autoencoders.cogvideox import CogVideoXAutoencoder, CogVideoXConfig
from jworld.models.autoencoders.hunyuan15 import Hunyuan15Autoencoder, Hunyuan15Config
from jworld.models.autoencoders.latents import Normalization
from jworld.models.autoencoders.patch import PatchAutoencoder, PatchConfig
from jworld.models.autoencoders.wan import WanAutoencoder, WanConfig
from jworld.utils import files as whole_files
from jworld.utils.errors import UserError

#: Family -> (class, class of its config).
NETWORKS: dict[str, tuple[Callable[..., network.VideoAutoencoder], type[Any]]] = {
    autoencoder.family: (autoencoder, config)
    for autoencoder, config in (
        (WanAutoencoder, WanConfig),
        (Hunyuan15Autoencoder, Hunyuan15Config),
        (CogVideoXAutoencoder, CogVideoXConfig),
        (PatchAutoencoder, PatchConfig),
    )
}
#: Header entry with {"family": ..., and the fields of the config}, also in files of the linear autoencoder.
HEADER = "autoencoder"


def save(model: network.VideoAutoencoder, path: str | pathlib.Path, *, dtype: str = "float32") -> None:
    """Write a network atomically, with its parameters as `dtype`, which a network that loads them does not keep.

    Raises:
      UserError: a parameter is too large for `dtype`.
    """
    state = nnx.state(model, nnx.Param)
    # safetensors stores memory without reordering, so it must be in C order.
    with np.errstate(over="ignore"):
        arrays = {
            "/".join(map(str, name)): np.asarray(leaf[...], dtype, order="C") for name, leaf in nnx.to_flat_state(state)
        }
    if large := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise UserError(f"{large[0]} has values that {dtype} cannot hold: choose float32")
    with whole_files.replacing(path) as temporary:
        safetensors.numpy.save_file(arrays, temporary, metadata=header(model.family, model.config))


def header(family: str, config: network.AutoencoderConfig) -> dict[str, str]:
    """Return the metadata of an autoencoder's safetensors file."""
    return {HEADER: json.dumps({"family": family, **network.settings(config)}, sort_keys=True)}


def load(path: str | pathlib.Path, **settings: Any) -> linear.LinearAutoencoder | network.VideoAutoencoder:
    """Load a file of `save` or of the linear autoencoder.

    `settings` replace fields of a network's config, such as dtype or chunk; the linear autoencoder has no such fields.

    Raises:
      UserError: the file is absent or of another kind, or its tensors are not exactly the network's.
    """
    family, config = read_config(path, **settings)
    if config is None:
        return linear.LinearAutoencoder.load(path)
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: NETWORKS[family][0](config, rngs=nnx.Rngs(0))))
    leaves = {"/".join(map(str, name)): (name, leaf) for name, leaf in nnx.to_flat_state(abstract)}
    with safetensors.safe_open(path, framework="numpy") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, not a dict
        expected = {name: leaf.shape for name, (_, leaf) in leaves.items()}
        if found != expected:
            wrong = sorted(dict(found.items() ^ expected.items()))
            raise UserError(
                f"{path} has other tensors than its config requires, at {', '.join(wrong[:4])}: import it again"
            )
        filled = [
            (keys, leaf.replace(jnp.asarray(file.get_tensor(name), leaf.dtype)))
            for name, (keys, leaf) in leaves.items()
        ]
    model: network.VideoAutoencoder = nnx.merge(graphdef, nnx.from_flat_state(filled))
    return model


def read_config(path: str | pathlib.Path, **settings: Any) -> tuple[str, network.AutoencoderConfig | None]:
    """Read family and config from the header of a file; the linear autoencoder has no config.

    Raises:
      UserError: the file is absent or of another kind.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"autoencoder file {path} does not exist: give an autoencoder.safetensors")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            fields = json.loads((file.metadata() or {})[HEADER])
        family = fields.pop("family")
        if family == linear.FAMILY:
            return family, None
        return family, dataclasses.replace(NETWORKS[family][1](**_read(fields)), **settings)
    except (safetensors.SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a saved autoencoder ({error}): save or import it again") from error


def _read(fields: dict[str, Any]) -> dict[str, Any]:
    """Convert JSON to the types of the config."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    normalisation = {name: tuple(numbers) for name, numbers in fields["normalisation"].items()}
    types = {name: jnp.dtype(fields[name]) for name in ("dtype", "param_dtype")}
    return values | types | {"normalisation": Normalization(**normalisation)}
