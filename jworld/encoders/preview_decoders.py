"""Tiny decoders of `models.autoencoders.taehv` from their published files, next to the autoencoder that encodes."""

import argparse
import dataclasses
import functools
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jworld.encoders import autoencoders
from jworld.models.autoencoders import files as autoencoder_files
from jworld.models.autoencoders import taehv
from jworld.utils import pickles, tensor_files
from jworld.utils.errors import UserError

FLAG = "--preview-decoder"
_FIX = f"give one of {', '.join(taehv.VARIANTS)}, as .safetensors or .pth"
Shape = tuple[int, ...]


def add_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the file of a preview decoder."""
    parser.add_argument(
        FLAG,
        metavar="FILE",
        help="file of a tiny decoder, such as taew2_1.safetensors, that decodes in place of the autoencoder, faster "
        "and less exactly (default: none)",
    )


class Full(NamedTuple):
    """Facts of the autoencoder whose latents are decoded."""

    family: str
    latent_channels: int
    spatial_ratio: int
    temporal_ratio: int


def of_manifest(manifest: Mapping[str, Any]) -> Full:
    """Return the facts of the autoencoder of a folder of records."""
    _, columns, channels = manifest["latent_shape"]
    ratio = manifest["image_size"][0] // columns
    return Full(manifest["autoencoder"]["family"], channels, ratio, manifest["temporal_ratio"])


def of_file(path: str) -> Full:
    """Return the facts of the autoencoder in a file, whose header alone is read."""
    family, config = autoencoder_files.read_config(autoencoders.find(path))
    if config is None:
        # No preview decoder fits the linear autoencoder, whatever its sizes are.
        return Full(family, 0, 0, 0)
    return Full(family, config.latent_channels, config.spatial_ratio, config.temporal_ratio)


def check(path: str, full: Full) -> None:
    """Raise a `UserError` if the file is not a preview decoder, or not one for latents of this autoencoder."""
    _checked(pathlib.Path(path), full)


def attached(autoencoder: autoencoders.Autoencoder, path: str) -> autoencoders.Autoencoder:
    """Return the autoencoder with a preview decoder in place of its own one; it encodes as before.

    The preview decoder computes in the dtype of the autoencoder.

    Raises:
      UserError: the file is absent, damaged, not a preview decoder, or not one for latents of this autoencoder.
    """
    own = autoencoder.network.config
    full = Full(autoencoder.family, own.latent_channels, autoencoder.spatial_ratio, autoencoder.temporal_ratio)
    config, variant, arrays = _checked(pathlib.Path(path), full)
    config = dataclasses.replace(
        config,
        normalization=own.normalisation if variant.raw else taehv.NORMALIZED,
        even_whole=variant.even_whole,
        dtype=own.dtype,
    )
    return autoencoder.previewed(make(config, arrays))


def make(config: taehv.TinyConfig, arrays: Mapping[str, np.ndarray]) -> taehv.TinyDecoder:
    """Return a decoder with the tensors of a file by their names."""
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: taehv.TinyDecoder(config, rngs=nnx.Rngs(0))))
    leaves = []
    for keys, leaf in nnx.to_flat_state(abstract):
        value = arrays[_name(keys)]
        # [O, I, h, w] -> [h, w, I, O]; the linear layers are convolutions of one pixel.
        value = value.transpose(2, 3, 1, 0).reshape(leaf.shape) if value.ndim == 4 else value
        leaves.append((keys, leaf.replace(jnp.asarray(value, leaf.dtype))))
    decoder: taehv.TinyDecoder = nnx.merge(graphdef, nnx.from_flat_state(leaves))
    return decoder


def read(path: pathlib.Path) -> tuple[taehv.TinyConfig, dict[str, np.ndarray]]:
    """Read a published file: the config that follows from its shapes, and all tensors of the decoder, float32.

    Every tensor is used once. Those of the published encoder may be there and are left out.

    Raises:
      UserError: the file is absent, damaged, or of another kind; or one message that lists all tensors that are
        missing, unexpected, misshapen or not finite.
    """
    arrays = _tensors(path)
    if "decoder.0.weight" in arrays:
        raise UserError(f"{path} is a decoder of the 'super' architecture, which is not supported: {_FIX}")
    config = _config(path, {name: array.shape for name, array in arrays.items()})
    expected = shapes(config)
    left_out = encoder_names()
    listed = [f"missing {name}" for name in expected if name not in arrays]
    for name, array in arrays.items():
        if name not in expected:
            listed += [] if name in left_out else [f"unexpected {name}"]
        elif array.shape != expected[name]:
            listed.append(f"misshapen {name}: {list(array.shape)}, expected {list(expected[name])}")
        elif not np.isfinite(array).all():
            listed.append(f"not finite {name}")
    if listed:
        raise UserError(f"{path}: {len(listed)} tensors do not fit a preview decoder: {'; '.join(listed)}: {_FIX}")
    return config, {name: arrays[name] for name in expected}


def _checked(path: pathlib.Path, full: Full) -> tuple[taehv.TinyConfig, taehv.Variant, dict[str, np.ndarray]]:
    """Read a file and find out which variant it is; see `check`."""
    try:
        fitting = [variant for variant in taehv.VARIANTS.values() if variant.family == full.family]
        if not fitting:
            raise UserError(
                f"there is no preview decoder for the model's autoencoder (family {full.family}): leave the option out"
            )
        # 16 channels have several variants, which only the name distinguishes.
        named = max((name for name in taehv.VARIANTS if name in path.stem), key=len, default=None)
        if named is not None and taehv.VARIANTS[named].family != full.family:
            titles = " or ".join(variant.title for variant in fitting)
            raise UserError(
                f"{path} decodes latents of {taehv.VARIANTS[named].title} by its name, expected {titles}, as the "
                "model's autoencoder: give the file for that"
            )
        config, arrays = read(path)
        found = {
            "channels": (config.latent_channels, full.latent_channels),
            "pixels per latent": (config.spatial_ratio, full.spatial_ratio),
            "frames per latent": (config.temporal_ratio, full.temporal_ratio),
        }
        for words, (own, expected) in found.items():
            if own != expected:
                raise UserError(
                    f"{path} decodes latents with {own} {words}, expected {expected}, as the model's autoencoder: "
                    "give the file for that"
                )
    except UserError as error:
        raise UserError(f"{FLAG}: {error}") from error
    return config, fitting[0], arrays


def _tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read all tensors of a file by name, as float32."""
    if path.suffix == ".safetensors":
        with tensor_files.opened(path, fix=_FIX) as file:
            return {name: np.asarray(file.get_tensor(name), np.float32) for name in file.keys()}  # noqa: SIM118
    if path.suffix not in (".pth", ".pt"):
        raise UserError(f"{path} is not a .safetensors or .pth file: {_FIX}")
    loaded = pickles.load_torch(path, fix=_FIX)
    if not isinstance(loaded, dict) or not all(hasattr(value, "numpy") for value in loaded.values()):
        raise UserError(f"{path} does not hold tensors by name alone: {_FIX}")
    return {str(name): value.detach().float().numpy() for name, value in loaded.items()}


def _config(path: pathlib.Path, shapes: Mapping[str, Shape]) -> taehv.TinyConfig:
    """Return the config of these shapes; where they are absent it is as published, for the comparison to name them."""

    def size(name: str, axis: int, default: int) -> int:
        shape = shapes.get(f"{name}.weight", ())
        return shape[axis] if len(shape) == 4 and shape[axis] else default

    published = taehv.TinyConfig(latent_channels=16)
    ends = [_CONV_IN, *(_LEVEL.leave(i) for i in range(len(published.growth)))]
    widths = tuple(size(name, 0, width) for name, width in zip(ends, published.widths, strict=True))
    growth = tuple(
        max(size(f"{_LEVEL.grow(i)}.conv", 0, widths[i] * number) // widths[i], 1)
        for i, number in enumerate(published.growth)
    )
    pixels = size(_CONV_OUT, 0, published.image_channels)
    patch = max(math.isqrt(pixels // published.image_channels), 1)
    try:
        channels = size(_CONV_IN, 1, published.latent_channels)
        return taehv.TinyConfig(latent_channels=channels, patch=patch, widths=widths, growth=growth)
    except UserError as error:
        raise UserError(f"{path} does not have the sizes of a preview decoder ({error}): {_FIX}") from error


class _Level:
    """Names of the modules of a level in the published files, where all modules of the decoder are numbered."""

    FIRST, COUNT = 3, taehv.BLOCKS + 3

    def block(self, level: int, number: int) -> str:
        return f"decoder.{self.FIRST + self.COUNT * level + number}"

    def grow(self, level: int) -> str:
        return self.block(level, taehv.BLOCKS + 1)

    def leave(self, level: int) -> str:
        return self.block(level, taehv.BLOCKS + 2)


_LEVEL = _Level()
_CONV_IN, _CONV_OUT = "decoder.1", "decoder.22"


def _name(keys: tuple[Any, ...]) -> str:
    """Return the published name of a parameter."""
    *place, kind = keys
    suffix = {"kernel": "weight", "bias": "bias"}[kind]
    match place:
        case ["enter"]:
            return f"{_CONV_IN}.{suffix}"
        case ["leave"]:
            return f"{_CONV_OUT}.{suffix}"
        case ["levels", int(level), "grow"]:
            return f"{_LEVEL.grow(level)}.conv.{suffix}"
        case ["levels", int(level), "leave"]:
            return f"{_LEVEL.leave(level)}.{suffix}"
        case ["levels", int(level), "blocks", int(number), "convs", int(conv)]:
            # A ReLU stands after each of the first two convolutions.
            return f"{_LEVEL.block(level, number)}.conv.{2 * conv}.{suffix}"
    raise ValueError(f"no published name for {keys}")


@functools.cache
def shapes(config: taehv.TinyConfig) -> dict[str, Shape]:
    """Return the shape of every tensor of the decoder by its published name."""
    abstract = nnx.state(nnx.eval_shape(lambda: taehv.TinyDecoder(config, rngs=nnx.Rngs(0))), nnx.Param)
    shapes = {}
    for keys, leaf in nnx.to_flat_state(abstract):
        *pixel, inputs, outputs = leaf.shape if len(leaf.shape) > 1 else (None, *leaf.shape)
        shapes[_name(keys)] = leaf.shape if inputs is None else (outputs, inputs, *(pixel or (1, 1)))
    return shapes


def encoder_names() -> set[str]:
    """Return the names of the tensors of the published encoder, which is not used here."""
    names = {f"encoder.{conv}.{suffix}" for conv in (0, 17) for suffix in ("weight", "bias")}
    for level in range(3):
        pool = 2 + 5 * level
        names |= {f"encoder.{pool}.conv.weight", f"encoder.{pool + 1}.weight"}
        for block in range(pool + 2, pool + 2 + taehv.BLOCKS):
            names |= {f"encoder.{block}.conv.{conv}.{suffix}" for conv in (0, 2, 4) for suffix in ("weight", "bias")}
    return names
