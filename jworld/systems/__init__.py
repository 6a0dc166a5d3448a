"""One system each: its model, its loss, its data and how it is sampled; the published ones, and autoencoders."""

from collections.abc import Callable
from typing import Any

import ml_collections

from jworld import errors
from jworld.systems.autoencoder.system import Autoencoder
from jworld.systems.cosmos.system import Cosmos
from jworld.systems.matrix.system import Matrix
from jworld.systems.worldplay.system import WorldPlay

REGISTRY: dict[str, Callable[[ml_collections.ConfigDict], Any]] = {
    "worldplay": WorldPlay,
    "cosmos": Cosmos,
    "matrix": Matrix,
    "autoencoder": Autoencoder,
}


def create(config: ml_collections.ConfigDict) -> Any:
    """The system that `config.system` names, built from the config."""
    if config.system not in REGISTRY:
        raise errors.UserError(f"config.system is {config.system!r}, expected one of {', '.join(REGISTRY)}")
    return REGISTRY[config.system](config)
