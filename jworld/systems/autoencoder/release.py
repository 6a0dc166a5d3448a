"""A trained autoencoder as one file, with the normalisation that gives its latents unit deviation."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress
from flax import nnx

from jworld.models.autoencoders import files as autoencoder_files
from jworld.models.autoencoders import network
from jworld.models.autoencoders.latents import Normalisation
from jworld.systems.autoencoder import data
from jworld.utils import indices

#: The statistics are those of so many training videos, and of so many frames of each, at most.
VIDEOS, FRAMES = 64, 81


def release(
    model: network.VideoAutoencoder, files: data.FrameFiles, path: pathlib.Path, *, console: rich.console.Console
) -> None:
    """Write `model` to `path`, normalised by its latents of the training videos."""
    mean, deviation = statistics(model, files, console=console)
    normalisation = Normalisation.from_statistics(tuple(mean.tolist()), tuple(deviation.tolist()))
    model.config = dataclasses.replace(model.config, normalisation=normalisation)
    path.parent.mkdir(parents=True, exist_ok=True)
    autoencoder_files.save(model, path)


def statistics(
    model: network.VideoAutoencoder, files: data.FrameFiles, *, console: rich.console.Console
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation [C], float64, of samples of the posterior, which are what the decoder was trained on.

    The deviation of the means alone is close to zero for a channel that says nothing: dividing by it would blow up its
    noise.
    """

    @nnx.jit
    def moments(model: network.VideoAutoencoder, video: Any) -> tuple[jax.Array, jax.Array]:
        posterior = model.posterior(video)
        squares = jnp.square(posterior.mean) + jnp.exp(jnp.clip(posterior.logvar, -30.0, 20.0))
        return jnp.mean(posterior.mean, axis=(0, 1, 2, 3)), jnp.mean(squares, axis=(0, 1, 2, 3))

    lengths = files.lengths("train")
    ratio = model.config.temporal_ratio
    # One length for all videos: one program.
    frames = (min(*lengths, FRAMES) - 1) // ratio * ratio + 1
    chosen = indices.evenly(len(lengths), VIDEOS)
    found = []
    for i in rich.progress.track(chosen, "measuring the latents", console=console):
        start = (lengths[i] - frames) // 2
        video = np.array(files.read("train", i)[start : start + frames])
        found.append(jax.device_get(moments(model, video[None])))
    mean, squares = np.mean(np.array(found, np.float64), axis=0)
    return mean, np.sqrt(squares - np.square(mean))
