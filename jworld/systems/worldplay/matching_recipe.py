"""The recipe that trains on a set of records."""

import pathlib
from collections.abc import Mapping
from typing import Any

from jworld.encoders import autoencoders
from jworld.systems import matching

#: For latents of published autoencoders, of that of the starter weights, and of others that jworld fits or trains.
PUBLISHED, STARTER, FITTED = "configs/ar_mem.py:8b", "configs/ar_mem.py", "configs/ar_mem.py:rooms"
#: Glyph tokens of a model that reads glyphs, as published.
GLYPH_TOKENS = 256


def train_command(manifest: Mapping[str, Any], directory: pathlib.Path) -> list[str] | None:
    """Return the arguments that train on a data set, or None if it lacks arrays that the system needs.

    Data sets with the autoencoder of the starter weights continue those. Others fit a tiny recipe or the published one,
    with their sizes as changes.
    """
    if not {"w2c", "action", "vision_states", "prompt"} <= manifest["arrays"].keys():
        return None
    is_tiny = manifest["autoencoder"]["family"] in autoencoders.OWN_FAMILIES
    recipe = PUBLISHED
    if is_tiny:
        recipe = STARTER if matching.continues(STARTER, manifest) else FITTED
    height, width, channels = manifest["latent_shape"]
    vision, glyph = manifest["vision_encoder"], manifest["glyph_encoder"]["dim"]
    needed = {
        **({"data.recording.source": ""} if is_tiny else {}),
        "data.clip.latent_size": (height, width),
        "data.clip.vision_tokens": vision["tokens"],
        "data.clip.glyph_tokens": GLYPH_TOKENS if glyph else 0,
        "model.channels": channels,
        "model.vision_dim": vision["dim"],
        "model.text_dim": manifest["text_encoder"]["dim"],
        "model.glyph_dim": glyph or None,
    }
    return matching.arguments(recipe, directory, needed)
