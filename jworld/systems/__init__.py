"""One folder per system: its model, loss, data, sampling and evaluation. This registry is the only list of them."""

import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

import ml_collections

from jworld.systems import base, common_keys, matching
from jworld.systems.autoencoder.system import Autoencoder
from jworld.systems.cosmos.system import Cosmos
from jworld.systems.matrix.system import Matrix
from jworld.systems.theworld.system import TheWorld
from jworld.systems.worldplay.system import WorldPlay
from jworld.utils import errors

# One table per kind, so that mypy checks the members of each kind.
VIDEO: dict[str, base.SystemType[base.VideoSystem[Any, Any]]] = {
    "worldplay": WorldPlay,
    "cosmos": Cosmos,
    "matrix": Matrix,
}
TEXT: dict[str, base.SystemType[base.TextSystem[Any, Any]]] = {"theworld": TheWorld}
OTHERS: dict[str, base.SystemType[base.AnySystem]] = {"autoencoder": Autoencoder}
#: Name in a config -> system.
REGISTRY: dict[str, base.SystemType[base.AnySystem]] = {**VIDEO, **TEXT, **OTHERS}


def create(config: ml_collections.ConfigDict) -> base.AnySystem:
    """Build the system that `config.system` names."""
    config = completed(config)
    return REGISTRY[config.system](config)


def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Inline settings that the system reads from other runs' configs, so that the saved config is self-contained."""
    return _system(config).completed(config)


def listed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Return `completed`, or a config with the same keys that needs no other run, if that run does not exist."""
    return _system(config).listed(config)


def _system(config: ml_collections.ConfigDict) -> base.SystemType[base.AnySystem]:
    if not isinstance(config.system, str) or config.system not in REGISTRY:
        raise errors.UserError(f"config.system is {config.system!r}, expected one of {', '.join(REGISTRY)}")
    common_keys.check(config)
    return REGISTRY[config.system]


def recipe_from_json(path: pathlib.Path) -> str:
    """Return the recipe for a JSON training config of an original system.

    Raises:
      UserError: no system has such a config, or a value has no counterpart in a recipe.
    """
    for system in REGISTRY.values():
        if (recipe := system.recipe_from_json(path)) is not None:
            return recipe
    raise errors.UserError(f"--from-json {path}: not a training config of an original system")


def train_command(manifest: Mapping[str, Any], directory: pathlib.Path) -> tuple[str, list[str]] | None:
    """Return the command that trains on the records in `directory`, and sentences about it; None if no recipe fits."""
    for system in REGISTRY.values():
        if (arguments := system.train_command(manifest, directory)) is not None:
            command = shlex.join(["python", "-m", "jworld.train", *arguments])
            return command, matching.notes(arguments, manifest)
    return None
