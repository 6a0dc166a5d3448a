"""One system each: its model, its loss, its data and how it is sampled; the published ones, and autoencoders."""

import pathlib
from collections.abc import Callable
from typing import Any

import ml_collections
from flax import nnx

from jworld.systems.autoencoder.system import Autoencoder
from jworld.systems.cosmos.system import Cosmos
from jworld.systems.matrix.system import Matrix
from jworld.systems.theworld import original
from jworld.systems.theworld.system import TheWorld
from jworld.systems.worldplay.system import WorldPlay
from jworld.utils import errors

REGISTRY: dict[str, Callable[[ml_collections.ConfigDict], Any]] = {
    "worldplay": WorldPlay,
    "cosmos": Cosmos,
    "matrix": Matrix,
    "theworld": TheWorld,
    "autoencoder": Autoencoder,
}


def recipe_from_json(path: pathlib.Path) -> str:
    """The text of the recipe that does what a JSON config of an original says; TheWorld alone has such."""
    return original.recipe(path)


def create(config: ml_collections.ConfigDict) -> Any:
    """The system that `config.system` names, built from the config."""
    config = completed(config)
    return REGISTRY[config.system](config)


def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """The config with what its system reads of other folders' configs: with that kept, a run needs them no more."""
    if config.system not in REGISTRY:
        raise errors.UserError(f"config.system is {config.system!r}, expected one of {', '.join(REGISTRY)}")
    complete = getattr(REGISTRY[config.system], "completed", None)
    return config if complete is None else complete(config)


def training_init(system: Any) -> Callable[[nnx.Rngs], Any]:
    """Makes the model as training holds it: with a frozen teacher, where there is one, which sampling does not need."""
    return getattr(system, "init_training", system.init)


def copies(system: Any) -> tuple[str, ...]:
    """Parts of that model, by the first word of their paths, that begin as copies of the weights that are read."""
    return getattr(system, "copies", ())


def parts(system: Any) -> dict[str, pathlib.Path]:
    """Parts of the model, by the first word of their paths, whose weights are those of other runs: their folders."""
    return getattr(system, "parts", {})


def loss_takes_average(system: Any) -> bool:
    """Whether `system.loss` is given, behind the key, the model with averaged weights."""
    return getattr(system, "loss_takes_average", False)
