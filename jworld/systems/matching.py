"""Commands that train on a set of records: a recipe, with the values that the records need, and what to know first."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from jworld.data import records
from jworld.encoders import model_encoders
from jworld.utils import config as run_config
from jworld.utils import resources

#: Options of `jworld.precompute` that decide a value of the network.
_MADE_WITH = {
    "model.channels": "--autoencoder",
    "model.text_dim": "--text-encoder",
    "model.glyph_dim": "--glyph-encoder",
    "model.vision_dim": "--image-encoder",
    "model.action_dim": "--frames",
}


def arguments(recipe: str, directory: pathlib.Path, needed: Mapping[str, Any]) -> list[str]:
    """Return the arguments of `jworld.train` for the records in `directory`.

    `needed` are values of the config by dotted key; those that the recipe has already are left out. A recipe of
    published size starts from scratch if its network must change, since the published weights do not fit then.
    """
    config = run_config.load_recipe(recipe)
    # A key that the recipe does not list counts as False.
    changed = {key: value for key, value in needed.items() if run_config.value_at(config, key, False) != value}
    if is_published(config) and any(key.startswith("model.") for key in changed):
        changed["init_from"] = ""
    changes = {"data.records": directory, **changed}
    return [f"--config={recipe}", *(f"--config.{key}={_text(value)}" for key, value in changes.items())]


def is_published(config: ml_collections.ConfigDict) -> bool:
    """Return whether a recipe continues published weights on the user's own data."""
    return bool(config.init_from) and not config.data.get("recording", {}).get("source", "")


def continues(recipe: str, manifest: Mapping[str, Any]) -> bool:
    """Return whether the records have latents and captions like those that a recipe's first weights were trained on."""
    folder = resources.find(run_config.load_recipe(recipe).init_from) / model_encoders.FOLDER
    if not (folder / records.MANIFEST).is_file():
        return False
    expected = records.read_manifest(folder)
    pairs = [("autoencoder", "hash"), ("text_encoder", "family"), ("text_encoder", "dim")]
    same_encoders = all(manifest[role].get(key) == expected[role].get(key) for role, key in pairs)
    return same_encoders and manifest["latent_shape"] == expected["latent_shape"]


def notes(arguments: Sequence[str], manifest: Mapping[str, Any]) -> list[str]:
    """Return sentences about a command of `arguments`: what the records lack, and what it would not use of them."""
    recipe = arguments[0].removeprefix("--config=")
    config = run_config.load_recipe(recipe)
    changes = dict(
        argument.removeprefix("--config.").split("=", 1) for argument in arguments if argument.startswith("--config.")
    )
    found = []
    wrong = [key for key in changes if key.startswith("model.")]
    if is_published(config) and wrong:
        widths = ", ".join(
            f"config.{key} {run_config.value_at(config, key, False)} (here {changes[key]})" for key in wrong
        )
        flags = " and ".join(dict.fromkeys(_MADE_WITH[key] for key in wrong if key in _MADE_WITH))
        found.append(
            f"the published weights of {recipe} have {widths}, so the next command trains from scratch: to continue "
            f"them, make the records again with another {flags}"
        )
    clip = config.data.clip
    window = int(changes.get("data.clip.window_frames", clip.window_frames))
    lengths = [length for clips in manifest["clips"].values() for length in clips]
    ratio = manifest["temporal_ratio"]
    if lengths and min(lengths) < window + (clip.get("start") == "middle"):
        found.append(
            f"the shortest clip has {min(lengths)} latents, an example of {recipe} has {window}: make the records "
            f"again with --frames {ratio * (window - 1) + 1} or more"
        )
    used = max((frames for _, frames in clip.get("curriculum", ())), default=window)
    longer = sum(length > used for length in lengths)
    if longer and clip.get("start", "first") == "first":
        frames = ratio * (used - 1) + 1
        found.append(
            f"{longer} of {len(lengths)} clips are longer than the {used} latents ({frames} frames) that training uses "
            f"of each, counted from its start: to use all frames, make the records again with --frames {frames} "
            f"--stride {max(round(manifest['fps']), 1)}"
        )
    return found


def window(manifest: Mapping[str, Any], recipe: str) -> int:
    """Return the latent frames of an example: those of the recipe, or fewer if a clip is shorter."""
    lengths: list[int] = [length for clips in manifest["clips"].values() for length in clips]
    frames = int(run_config.load_recipe(recipe).data.clip.window_frames)
    return min([frames, *lengths])


def _text(value: Any) -> str:
    """Return a value as --config.key=value takes it; tuples have no blanks."""
    return "(" + ",".join(map(repr, value)) + ")" if isinstance(value, tuple) else str(value)
