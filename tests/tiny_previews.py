"""Random tiny decoders as published files, and a run whose autoencoder has latents for them."""

import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tiny_autoencoders
import tiny_run

from jworld.encoders import preview_decoders
from jworld.models.autoencoders import files, taehv, wan

WIDTHS = (8, 6, 4, 4)
#: Autoencoder of 8x8 pixels and 4 frames per latent, with the 16 channels of the published one.
WAN = wan.WanConfig(blocks=1, channels=8, multipliers=(1, 1, 2, 2), dtype=jnp.float32)


def tensors(
    variant: str = "taew2_1", *, seed: int = 0, encoder: bool = True, widths: tuple[int, ...] = WIDTHS
) -> dict[str, np.ndarray]:
    """Draw the tensors of a published file with narrow levels, float16; those of the encoder have one number each."""
    chosen, rng = taehv.VARIANTS[variant], np.random.default_rng(seed)
    config = taehv.TinyConfig(latent_channels=chosen.latent_channels, patch=chosen.patch, widths=widths)
    drawn = {}
    for name, shape in preview_decoders.shapes(config).items():
        deviation = 0.2 if len(shape) == 1 else 1.4 / np.prod(shape[1:]) ** 0.5
        drawn[name] = deviation * rng.standard_normal(shape)
    drawn["decoder.22.bias"] += 0.5
    drawn |= dict.fromkeys(preview_decoders.encoder_names() if encoder else (), np.ones(1))
    return {name: np.asarray(value, np.float16) for name, value in drawn.items()}


def save(path: pathlib.Path, variant: str = "taew2_1", **options: Any) -> pathlib.Path:
    """Write such a file as .safetensors or .pth; -> the file."""
    drawn = tensors(variant, **options)
    if path.suffix == ".safetensors":
        safetensors.numpy.save_file(drawn, path)
    else:
        import torch

        torch.save({name: torch.from_numpy(value) for name, value in drawn.items()}, path)
    return path


def make_run(directory: pathlib.Path) -> tuple[pathlib.Path, list[str]]:
    """Make the folder of a run without a data set, once per `directory`, and the autoencoder of its latents.

    Returns:
      The folder, and the options that name the encoders of its model.
    """
    run, autoencoder = directory / "run", directory / "wan.safetensors"
    if not run.is_dir():
        directory.mkdir(parents=True, exist_ok=True)
        files.save(tiny_autoencoders.drawn("wan", WAN), autoencoder)
        config = tiny_run.make_config(directory)
        with config.unlocked():
            config.model.channels = WAN.latent_channels
        tiny_run.write(run, config)
    encoders = {
        "--autoencoder": str(autoencoder),
        "--text-encoder": f"hashed-words:{tiny_run.TEXT_DIM}",
        "--image-encoder": "thumbnail",
    }
    return run, [word for pair in encoders.items() for word in pair]
