"""Generation with a model that is only described: its programs and the autoencoder, for planning."""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from flax import nnx

from jworld.data.inputs import fitting
from jworld.encoders import autoencoders, choices, model_encoders
from jworld.models.autoencoders import files, linear, network
from jworld.parallel.programs import Program
from jworld.utils import config as run_config

_WEIGHTS = ("basis", "mean", "scale", "std")


class Generation(NamedTuple):
    """Programs of generation. They may be taken on the model's mesh only, in their order.

    Attributes:
      network: programs of the network.
      decoding: programs of the autoencoder; none for a model that answers in text.
      autoencoder: weights of the autoencoder that are not among those of the model.
      unit: what is generated, in the plural: "frames" or "tokens".
      per_chunk: number of them in a chunk after the first.
      chunk: description of what a chunk is made from, for reports.
    """

    network: Iterator[Program]
    decoding: Iterator[Program]
    autoencoder: Any
    unit: str
    per_chunk: int
    chunk: str


def encoders(
    config: ml_collections.ConfigDict,
    *,
    published: str,
    latent: Sequence[int],
    fps: float,
    mesh: jax.sharding.Mesh,
) -> model_encoders.Encoders:
    """Describe the encoders of a video model; those of text and images are left out.

    The autoencoder is the one that the config names, if its file exists. Else it is the published one, if its latents
    have as many channels, or a linear autoencoder.

    Args:
      config: the model's config.
      published: family of the published autoencoder.
      latent: height, width and channels of the latents.
      fps: frame rate of the videos, in frames per second.
      mesh: mesh of the model.

    Raises:
      UserError: the config names an autoencoder for sampling that is absent or damaged.
    """
    height, width, channels = latent
    found = _autoencoder(config, published, channels)
    ratio = found.config.spatial_ratio
    return model_encoders.Encoders(
        autoencoder=autoencoders.Autoencoder(found, mesh=mesh),
        text=None,
        glyph=None,
        images=None,
        fit=fitting.Fit(width=width * ratio, height=height * ratio),
        fps=fps,
    )


def _autoencoder(config: ml_collections.ConfigDict, published: str, channels: int) -> autoencoders.Network:
    """Return the autoencoder with descriptions in place of its weights."""
    encoding = config.data.get("encoding", {})
    given, own = choices.from_config(config).autoencoder, encoding.get("autoencoder", "")
    if given is not None or pathlib.Path(own).is_file():
        family, found = files.read_config(autoencoders.find(given or own))
        if found is not None:
            return _abstract(family, found)
    elif (default := files.NETWORKS[published][1]()).latent_channels == channels:
        return _abstract(published, default)
    ratio = run_config.value_at(config, "data.encoding.spatial_ratio", linear.LinearConfig(channels=1).spatial_ratio)
    return _linear(linear.LinearConfig(channels=channels, spatial_ratio=ratio))


def _abstract(family: str, config: network.AutoencoderConfig) -> network.VideoAutoencoder:
    with nnx.use_eager_sharding(False):
        described: network.VideoAutoencoder = nnx.eval_shape(
            lambda: files.NETWORKS[family][0](config, rngs=nnx.Rngs(0))
        )
    return described


def _linear(config: linear.LinearConfig) -> linear.LinearAutoencoder:
    weights: dict[str, np.ndarray] = {}
    for kind in ("first", "group"):
        size = config.patch_size(first=kind == "first")
        shapes = {"basis": (size, config.channels), "mean": (size,), "scale": (), "std": (config.channels,)}
        weights |= {f"{kind}.{name}": np.ones(shapes[name], np.float32) for name in _WEIGHTS}
    graphdef, state = nnx.split(linear.LinearAutoencoder(config, weights))
    described = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    merged: linear.LinearAutoencoder = nnx.merge(graphdef, described)
    return merged
