"""One folder per system: its model, loss, data, sampling and evaluation. This registry is the only list of them."""

import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import ml_collections

from jworld.systems import base
from jworld.systems.autoencoder.system import Autoencoder
from jworld.systems.cosmos.system import Cosmos
from jworld.systems.matrix.system import Matrix
from jworld.systems.theworld.system import TheWorld
from jworld.systems.worldplay.system import WorldPlay
from jworld.utils import errors

REGISTRY: dict[str, base.SystemType] = {
    "worldplay": WorldPlay,
    "cosmos": Cosmos,
    "matrix": Matrix,
    "theworld": TheWorld,
    "autoencoder": Autoencoder,
}


def create(config: ml_collections.ConfigDict) -> base.AnySystem:
    """Build the system that `config.system` names."""
    config = completed(config)
    return REGISTRY[config.system](config)


def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Inline settings that the system reads from other runs' configs, so that the saved config is self-contained."""
    if config.system not in REGISTRY:
        raise errors.UserError(f"config.system is {config.system!r}, expected one of {', '.join(REGISTRY)}")
    return REGISTRY[config.system].completed(config)


def recipe_from_json(path: pathlib.Path) -> str:
    """Return the recipe for a JSON training config of an original system.

    Raises:
      UserError: no system has such a config, or a value has no counterpart in a recipe.
    """
    for system in REGISTRY.values():
        if (recipe := system.recipe_from_json(path)) is not None:
            return recipe
    raise errors.UserError(f"--from-json {path}: not a training config of an original system")


def train_command(manifest: Mapping[str, Any], directory: pathlib.Path) -> str | None:
    """Return the command that trains on the records in `directory`, or None if they fit no recipe."""
    for system in REGISTRY.values():
        if (arguments := system.train_command(manifest, directory)) is not None:
            return shlex.join(["python", "-m", "jworld.train", *arguments])
    return None
