"""The recipe that trains on a set of records."""

import pathlib
from collections.abc import Mapping
from typing import Any

from jworld.models.autoencoders import linear
from jworld.systems.worldplay import published_files

RECIPE, TINY = "configs/ar_mem.py:8b", "configs/ar_mem.py:rooms"
RECIPE_SIZES = published_files.Sizes(latent=(30, 52, 32), vision=(729, 1152), text=3584, glyph=1472)


def train_command(manifest: Mapping[str, Any], directory: pathlib.Path) -> list[str] | None:
    """Return the arguments that train on a data set, or None if it lacks arrays that the system needs.

    Data sets with a linear autoencoder fit the tiny recipe. Others fit the published one, with their sizes as changes.
    """
    if not {"w2c", "action", "vision_states", "prompt"} <= manifest["arrays"].keys():
        return None
    if manifest["autoencoder"]["family"] == linear.FAMILY:
        return [f"--config={TINY}", "--config.data.recording.source=", f"--config.data.records={directory}"]
    height, width, channels = manifest["latent_shape"]
    vision = manifest["vision_encoder"]
    sizes = published_files.Sizes(
        latent=(height, width, channels),
        vision=(vision["tokens"], vision["dim"]),
        text=manifest["text_encoder"]["dim"],
        glyph=manifest["glyph_encoder"]["dim"],
    )
    usual = _size_settings(RECIPE_SIZES)
    changed = {key: value for key, value in _size_settings(sizes).items() if value != usual[key]}
    options = [f"--config.{key}={value}" for key, value in {"data.records": directory, **changed}.items()]
    return [f"--config={RECIPE}", *options]


def _size_settings(sizes: published_files.Sizes) -> dict[str, Any]:
    return {
        "data.clip.latent_size": "({},{})".format(*sizes.latent[:2]),
        "data.clip.vision_tokens": sizes.vision[0],
        "model.channels": sizes.latent[2],
        "model.vision_dim": sizes.vision[1],
        "model.text_dim": sizes.text,
        "model.glyph_dim": sizes.glyph,
    }
