"""The config of imported weights: hyper-parameters from every place that tells them, which must agree."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from conversion import families
from jworld import systems
from jworld.utils import config as run_config
from jworld.utils import errors

#: Beside this package in a checkout; an installed package comes without.
_RECIPES = pathlib.Path(__file__).parents[1] / "configs"
#: How a network is computed, and not what it is: no place contradicts another about these.
FREE = ("dtype", "param_dtype", "frozen_dtype", "remat", "attention")


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """["model.rope_dims=16,56,56"] -> {"model.rope_dims": (16, 56, 56)}.

    Raises:
      UserError: not of this form, or two values for one key.
    """
    values: dict[str, Any] = {}
    for key, value in map(run_config.parse_setting, settings):
        if values.setdefault(key, value) != value:
            raise errors.UserError(f"--set {key}: given twice, as {values[key]!r} and {value!r}")
    return values


def resolve(
    runs: families.Runs,
    *,
    shapes: Mapping[str, Any],
    downloaded: tuple[str, Mapping[str, Any]] | None,
    recipe: str | None,
    settings: Mapping[str, Any],
    variant: str,
) -> tuple[ml_collections.ConfigDict, list[str]]:
    """The config of a run with these weights, and the hyper-parameters that nothing but the published values tells.

    Args:
      runs: what the weights become.
      shapes: hyper-parameters that the tensors tell.
      downloaded: the path of the config.json beside them and the hyper-parameters that it tells.
      recipe: a recipe that the weights must fit, and whose other values to use.
      settings: single values by dotted key.
      variant: a key of `runs.variants`.

    Raises:
      UserError: two places contradict each other, a value is missing, or the values do not make a model.
    """
    config = _base_config(runs, recipe, runs.recipes.get(variant, runs.recipe))
    told: dict[str, Mapping[str, Any]] = {"the tensors' shapes": shapes}
    if downloaded is not None:
        told[downloaded[0]] = downloaded[1]
    if recipe is not None:
        told[f"--config={recipe}"] = {key: value for key, value in _flat(config.model).items() if key not in FREE}
    model_settings = {key.removeprefix("model."): settings[key] for key in settings if key.startswith("model.")}
    told["--set"] = {key: value for key, value in model_settings.items() if key not in FREE}
    facts = agreed(told, "model.")
    free = {key: value for key, value in model_settings.items() if key in FREE}
    with config.unlocked():
        if "world" in facts and any(key.startswith("world.") for key in facts):
            raise errors.UserError(
                "the model is to have a world, but the checkpoint has no autoencoder: name one with --base, or a "
                "recipe without a world"
            )
        published = [key for key in _flat(config.model) if key not in facts and key not in FREE]
        if facts.get("world", "") is None:
            published = [key for key in published if not key.startswith("world.")]
        _assign(config.model, {**facts, **free})
        config.sample.rollout.update(runs.variants[variant])
        runs.fit(config)
    values = config.to_dict()
    for key, value in settings.items():
        if not key.startswith("model."):
            run_config.set_value(values, key, value)
    config = ml_collections.ConfigDict(values)
    try:
        systems.create(config)
    except errors.UserError as error:
        unknown = [key for key in published if key in str(error)]
        keys = " ".join(f"--set model.{key}=..." for key in unknown) or "--set key=value"
        told_by = f"nothing tells {' and '.join(unknown)} of these weights, " if unknown else ""
        raise errors.UserError(f"the weights make no model: {error}: {told_by}give {keys}") from error
    return config.lock(), published


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested sections as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = _flat(value) if isinstance(value, ml_collections.ConfigDict) else None
        flat |= {key: value} if inner is None else {f"{key}.{name}": each for name, each in inner.items()}
    return flat


def _assign(section: ml_collections.ConfigDict, values: Mapping[str, Any]) -> None:
    """The inverse of `_flat`, into what is there."""
    for key, value in values.items():
        *parents, name = key.split(".")
        node = section
        for parent in parents:
            node = node[parent]
        # None, where a whole section is not wanted.
        if name in node and isinstance(node[name], ml_collections.ConfigDict):
            del node[name]
        node[name] = value


def _base_config(runs: families.Runs, recipe: str | None, published: str) -> ml_collections.ConfigDict:
    if recipe is None and not _RECIPES.is_dir():
        raise errors.UserError(
            f"{_RECIPES} is absent, where the published values are (configs/{published}): "
            "run this in a checkout of jworld, or name a recipe with --config"
        )
    config = run_config.load_recipe(recipe or f"{_RECIPES / published}")
    run_config.check_sections(config)
    if config.system != runs.system:
        raise errors.UserError(
            f"--config={recipe}: is a recipe of the system {config.system}, expected one of {runs.system}"
        )
    with config.unlocked():
        config.init_from = ""
        if "lora" in config.model:
            # Of a file with adapters these are merged.
            del config.model["lora"]
            config.optimizer.trainable = ".*"
        if recipe is None:
            # Weights run on whatever devices there are; the published training run's mesh is none of their own.
            config.mesh = {"data": 1, "fsdp": -1, "sequence": 1}
    return config


def agreed(told: Mapping[str, Mapping[str, Any]], prefix: str = "") -> dict[str, Any]:
    """What all places together tell, each of which tells hyper-parameters by name (with a prefix in messages).

    Raises:
      UserError: one message with every contradiction.
    """
    facts: dict[str, Any] = {}
    teller: dict[str, str] = {}
    contradictions = []
    for place, values in told.items():
        for key, value in values.items():
            value = tuple(value) if isinstance(value, list) else value
            if key not in facts:
                facts[key], teller[key] = value, place
            elif facts[key] != value:
                contradictions.append(f"{prefix}{key} is {facts[key]!r} by {teller[key]}, but {value!r} by {place}")
    if contradictions:
        raise errors.UserError(f"{'; '.join(contradictions)}: correct the wrong one, or leave it out")
    return facts
