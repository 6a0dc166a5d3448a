"""The recipe that trains on a set of records."""

import pathlib
from collections.abc import Mapping
from typing import Any

from jworld.encoders import autoencoders
from jworld.systems import matching
from jworld.utils import config as run_config

#: Input formats whose records the system trains on.
FORMATS = ("cosmos", "bridge", "lerobot", "rlds", "jasmine", "videos")
RECIPE = "configs/cosmos_video2world.py"
#: Families of autoencoders of other systems, whose records of videos alone belong to those.
OTHERS = ("cogvideox", "hunyuan15")


def train_command(manifest: Mapping[str, Any], directory: pathlib.Path) -> list[str] | None:
    """Return the arguments that train on a data set, or None if it is not of a format for Cosmos, or of videos alone.

    Data sets with the autoencoder of the shipped base continue that. Others fit a tiny recipe from scratch or a
    published one, with their sizes as changes.
    """
    family, source = manifest["autoencoder"]["family"], manifest["source"]
    if source not in FORMATS or "prompt" not in manifest["arrays"] or (source == "videos" and family in OTHERS):
        return None
    is_tiny = family in autoencoders.OWN_FAMILIES
    continues = is_tiny and matching.continues(RECIPE, manifest)
    recipe = _recipe(manifest, is_tiny=is_tiny, continues=continues)
    height, width, channels = manifest["latent_shape"]
    odd = {"model.patch_size": (1, 1, 1)} if height % 2 or width % 2 else {}
    needed: dict[str, Any] = {
        **({"data.recording.source": ""} | odd if is_tiny else {}),
        "data.clip.latent_size": (height, width),
        "data.clip.window_frames": matching.window(manifest, recipe),
        "model.channels": channels,
        "model.text_dim": manifest["text_encoder"]["dim"],
    }
    if is_tiny and not continues:
        needed["init_from"] = ""
    if manifest.get("views"):
        needed |= _views(manifest, recipe, needed["data.clip.window_frames"])
    if "motion" in manifest["arrays"]:
        needed |= _motion(manifest)
    return matching.arguments(recipe, directory, needed)


def _recipe(manifest: Mapping[str, Any], *, is_tiny: bool, continues: bool) -> str:
    size = "tiny" if is_tiny else "2b"
    if "motion" not in manifest["arrays"]:
        if manifest.get("views"):
            return f"{RECIPE}:{size}_multiview"
        if continues:
            return RECIPE
        return f"{RECIPE}:{'base' if is_tiny else '2b'}"
    if is_tiny and manifest["source"] == "jasmine":
        return f"{RECIPE}:coinrun"
    return f"{RECIPE}:{size}_{'lerobot' if 'commands' in manifest else 'action'}"


def _views(manifest: Mapping[str, Any], recipe: str, frames: int) -> dict[str, Any]:
    names, ids = tuple(manifest["views"]["names"]), tuple(manifest["views"]["ids"])
    needed = {
        "data.clip.views": names,
        "data.clip.view_ids": ids,
        "model.view_frames": frames,
        "model.views": max(*ids, run_config.load_recipe(recipe).model.views - 1) + 1,
    }
    # Without 0, no camera is the front one of the recipe.
    return needed if 0 in ids else needed | {"data.clip.caption_view": None}


def _motion(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the sizes of a record's motions, which are those of all its frames."""
    latents = next(length for clips in manifest["clips"].values() for length in clips)
    numbers = manifest["arrays"]["motion"]["shape"][-1]
    actions = {"data.clip.command_size": numbers} if "commands" in manifest else {"data.clip.actions": "motion"}
    action_dim = numbers * manifest["temporal_ratio"] * (latents - 1)
    return {"data.clip.window_frames": latents, "model.action_dim": action_dim, **actions}
