"""Autoencoder files of every family: safetensors with parameters by path and the config in the header."""

import dataclasses
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx

from jworld.models import network_files
from jworld.models.autoencoders import linear, network
from jworld.models.autoencoders.cogvideox import CogVideoXAutoencoder, CogVideoXConfig
from jworld.models.autoencoders.hunyuan15 import Hunyuan15Autoencoder, Hunyuan15Config
from jworld.models.autoencoders.latents import Normalization
from jworld.models.autoencoders.patch import PatchAutoencoder, PatchConfig
from jworld.models.autoencoders.wan import WanAutoencoder, WanConfig
from jworld.utils import tensor_files
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
    """Write a network, see `network_files.save`."""
    network_files.save(model, path, header(model.family, model.config), dtype=dtype)


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
    make = NETWORKS[family][0]
    return network_files.load(path, lambda: make(config, rngs=nnx.Rngs(0)), remedy="import it again")


def read_config(path: str | pathlib.Path, **settings: Any) -> tuple[str, network.AutoencoderConfig | None]:
    """Read family and config from the header of a file; the linear autoencoder has no config.

    Raises:
      UserError: the file is absent or of another kind.
    """
    fix = "give an autoencoder.safetensors, or save or import it again"
    with tensor_files.opened(path, fix=fix, name=f"autoencoder file {path}") as file:
        fields = tensor_files.header(file, HEADER, path, fix=fix)
    try:
        family = fields.pop("family")
        if family == linear.FAMILY:
            return family, None
        return family, dataclasses.replace(NETWORKS[family][1](**_read(fields)), **settings)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not a saved autoencoder ({error!r}): {fix}") from error


def _read(fields: dict[str, Any]) -> dict[str, Any]:
    """Convert JSON to the types of the config."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    normalisation = {name: tuple(numbers) for name, numbers in fields["normalisation"].items()}
    types = {name: jnp.dtype(fields[name]) for name in ("dtype", "param_dtype")}
    return values | types | {"normalisation": Normalization(**normalisation)}
