"""Tiny decoders: whole clips in one piece and by chunks, and videos in calls of one latent and of several."""

import pathlib
import tempfile
from typing import Any

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from jworld.encoders import preview_decoders
from jworld.models.autoencoders import taehv


def load(case: golden_cases.GoldenCase, **fields: Any) -> taehv.TinyDecoder:
    """Read the case's weights as a published file, in float32."""
    variant = taehv.VARIANTS[case.config["checkpoint"]]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / f"{case.config['checkpoint']}.safetensors"
        safetensors.numpy.save_file(case.weights, path)
        config, arrays = preview_decoders.read(path)
    golden_cases.require(
        case.config,
        latent_channels=config.latent_channels,
        patch_size=config.patch,
        widths=config.widths,
        t_upscale=config.temporal_ratio,
        frames_to_trim=config.temporal_ratio - 1,
    )
    assert (variant.latent_channels, variant.patch) == (config.latent_channels, config.patch)
    settings = {**vars(config), "even_whole": variant.even_whole, "dtype": jnp.float32, **fields}
    return preview_decoders.make(taehv.TinyConfig(**settings), arrays)


def streamed(model: taehv.TinyDecoder, latents: np.ndarray, size: int) -> jax.Array:
    """Decode in calls of `size` latents."""
    step, cache, frames = jax.jit(taehv.TinyDecoder.decode_step), None, []
    for start in range(0, latents.shape[1], size):
        part, cache = step(model, latents[:, start : start + size], cache)
        frames.append(part)
    return jnp.concatenate(frames, axis=1)


def error(case: golden_cases.GoldenCase, model: taehv.TinyDecoder, whole: taehv.TinyDecoder) -> float:
    """Return the largest error of decoding by chunks (`model`), in one piece (`whole`) and in calls."""
    found = []
    golden_cases.require(case.config, latent_lengths=sorted(int(name[8:]) for name in case.inputs))
    for name, stored in case.inputs.items():
        # Latents are [B, F, C, H, W] there, and frames [B, T, 3, H, W] in [0, 1].
        latents = np.moveaxis(stored, 2, -1)
        length = name.removeprefix("latent_")
        expected = np.moveaxis(case.outputs[f"decoded_{length}"], 2, -1)
        stream = np.moveaxis(case.outputs.get(f"streamed_{length}", case.outputs[f"decoded_{length}"]), 2, -1)
        for decoder in (model, whole):
            found.append((jax.jit(taehv.TinyDecoder.decode)(decoder, latents), expected))
        found += [(streamed(decoder, latents, size), stream) for decoder, size in ((model, 1), (whole, 2))]
    return max(golden_cases.relative_error((video + 1) / 2, expected) for video, expected in found)


def _taehv(case: golden_cases.GoldenCase) -> float:
    return error(case, load(case), load(case, chunk=None))


CHECKS = {"vae/taehv": _taehv}
