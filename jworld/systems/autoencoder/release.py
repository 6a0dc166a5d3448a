"""Release of a trained autoencoder as one file, with the normalization of its latents for diffusion models."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress

from jworld.models.autoencoders import files as autoencoder_files
from jworld.models.autoencoders import network
from jworld.models.autoencoders.latents import Normalization
from jworld.systems.autoencoder import data
from jworld.utils import indices

#: Statistics use at most this many training videos, and at most this many frames of each.
VIDEOS, FRAMES = 64, 81


def release(
    model: network.VideoAutoencoder,
    files: data.FrameFiles,
    path: pathlib.Path,
    *,
    dtype: str = "float32",
    console: rich.console.Console,
) -> None:
    """Write `model` to `path` as `dtype`, with a normalization measured on the training videos."""
    mean, deviation = statistics(model, files, console=console)
    deviation = deviation / model.strengths(deviation)
    normalisation = Normalization.from_statistics(tuple(mean.tolist()), tuple(deviation.tolist()))
    model.config = dataclasses.replace(model.config, normalisation=normalisation)
    path.parent.mkdir(parents=True, exist_ok=True)
    autoencoder_files.save(model, path, dtype=dtype)


def statistics(
    model: network.VideoAutoencoder, files: data.FrameFiles, *, console: rich.console.Console
) -> tuple[np.ndarray, np.ndarray]:
    """Measure mean and standard deviation [C], float64, of samples of the posterior, the decoder's training inputs.

    The deviation of the posterior means alone is close to zero for an unused channel. Dividing by it would amplify the
    channel's noise.
    """

    @jax.jit
    def moments(model: network.VideoAutoencoder, video: Any) -> tuple[jax.Array, jax.Array]:
        posterior = model.posterior(video)
        squares = jnp.square(posterior.mean) + jnp.exp(jnp.clip(posterior.logvar, -30.0, 20.0))
        return jnp.mean(posterior.mean, axis=(0, 1, 2, 3)), jnp.mean(squares, axis=(0, 1, 2, 3))

    lengths = files.lengths("train")
    ratio = model.config.temporal_ratio
    # One length for all videos, so that one program is compiled.
    frames = (min(*lengths, FRAMES) - 1) // ratio * ratio + 1
    chosen = indices.evenly(len(lengths), VIDEOS)
    found = []
    for i in rich.progress.track(chosen, "measuring the latents", console=console):
        start = (lengths[i] - frames) // 2
        video = np.array(files.read("train", i)[start : start + frames])
        found.append(jax.device_get(moments(model, video[None])))
    mean, squares = np.mean(np.array(found, np.float64), axis=0)
    return mean, np.sqrt(squares - np.square(mean))
