"""Config of imported weights, from all sources of hyper-parameters, which must agree."""

import ast
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from conversion import families, schedulers
from jworld import systems
from jworld.systems import recipes
from jworld.utils import config as run_config
from jworld.utils import errors, ranges, resources

#: Source of the values that the user gives, in `agreed`.
OPTIONS = "--config."
#: Settings of the computation and not of the network, in which sources may differ.
FREE = ("dtype", "param_dtype", "frozen_dtype", "remat", "attention")


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """Parse settings, such as ["model.rope_dims=16,56,56"] to {"model.rope_dims": (16, 56, 56)}.

    Raises:
      UserError: a setting is not of this form, or a key has two values.
    """
    values: dict[str, Any] = {}
    for key, value in map(_parse_setting, settings):
        if values.setdefault(key, value) != value:
            raise errors.UserError(f"{OPTIONS}{key}: found two values, {values[key]!r} and {value!r}: give one")
    return values


def _parse_setting(text: str) -> tuple[str, Any]:
    """Parse "a.b=1,2" to ("a.b", (1, 2)); a value that is not a Python literal is text."""
    key, equals, value = text.partition("=")
    key, value = key.strip().removeprefix("config."), value.strip()
    if not equals or not key:
        raise errors.UserError(f"{OPTIONS}{text}: expected KEY=VALUE, such as {OPTIONS}model.rope_dims=16,56,56")
    if value.lower() in ("true", "false"):
        return key, value.lower() == "true"
    try:
        return key, ranges.as_tuple(ast.literal_eval(value))
    except (SyntaxError, ValueError):
        return key, value


def resolve(
    runs: families.Runs,
    *,
    shapes: Mapping[str, Any],
    downloaded: tuple[str, Mapping[str, Any]] | None,
    recipe: str | None,
    settings: Mapping[str, Any],
    variant: str,
    scheduler: tuple[str, Mapping[str, Any]] | None = None,
) -> tuple[ml_collections.ConfigDict, list[str]]:
    """Return the config of a run with these weights, and the hyper-parameters that only the published values set.

    Args:
      runs: the runs that the weights become.
      shapes: hyper-parameters that follow from the tensors' shapes.
      downloaded: path of the config.json next to the tensors, and its hyper-parameters.
      recipe: a recipe that the weights must match, and that sets all other values.
      settings: single values by dotted key; they replace those of the recipe and of the scheduler's file.
      variant: a key of `runs.variants`.
      scheduler: path of the scheduler_config.json next to the tensors, and the values that it sets, by dotted key.

    Raises:
      UserError: two sources contradict each other, a value is missing, or the values are not those of a model.
    """
    config = _base_config(runs, recipe, runs.recipes.get(variant, runs.recipe))
    claims: dict[str, Mapping[str, Any]] = {"the tensors' shapes": shapes}
    if downloaded is not None:
        claims[downloaded[0]] = downloaded[1]
    model_settings = {key.removeprefix("model."): settings[key] for key in settings if key.startswith("model.")}
    if recipe is not None:
        hidden = {*FREE, *model_settings}
        claims[f"--config={recipe}"] = {key: value for key, value in _flat(config.model).items() if key not in hidden}
    claims[OPTIONS] = {key: value for key, value in model_settings.items() if key not in FREE}
    facts = agreed(claims, "model.")
    free = {key: value for key, value in model_settings.items() if key in FREE}
    with config.unlocked():
        if "world" in facts and any(key.startswith("world.") for key in facts):
            raise errors.UserError(
                "the model has world tokens, but the checkpoint has no autoencoder: give one with --base, or a recipe "
                "without a world"
            )
        published = [key for key in _flat(config.model) if key not in facts and key not in FREE]
        if facts.get("world", "") is None:
            published = [key for key in published if not key.startswith("world.")]
        _assign(config.model, {**facts, **free})
        config.sample.rollout.update(runs.variants[variant])
        if scheduler is not None:
            others = {key: value for key, value in scheduler[1].items() if key not in settings}
            schedulers.apply(config, others, scheduler[0], recipe)
        runs.fit(config)
    others = {key: str(value) for key, value in settings.items() if not key.startswith("model.")}
    config = recipes.change(config, others)
    try:
        systems.create(config)
    except errors.UserError as error:
        unknown = [key for key in published if key in str(error)]
        keys = " ".join(f"{OPTIONS}model.{key}=..." for key in unknown) or f"other values with {OPTIONS}model.KEY=VALUE"
        reason = f"no source gives {' and '.join(unknown)} of these weights, " if unknown else ""
        raise errors.UserError(f"these sizes do not make a model: {error}: {reason}give {keys}") from error
    return config, published


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested sections to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = _flat(value) if isinstance(value, ml_collections.ConfigDict) else None
        flat |= {key: value} if inner is None else {f"{key}.{name}": each for name, each in inner.items()}
    return flat


def _assign(section: ml_collections.ConfigDict, values: Mapping[str, Any]) -> None:
    """Set values by dotted keys, the inverse of `_flat`."""
    for key, value in values.items():
        *parents, name = key.split(".")
        node = section
        for parent in parents:
            node = node[parent]
        # None removes a whole section.
        if name in node and isinstance(node[name], ml_collections.ConfigDict):
            del node[name]
        node[name] = value


def _base_config(runs: families.Runs, recipe: str | None, published: str) -> ml_collections.ConfigDict:
    config = run_config.load_recipe(recipe or str(resources.root() / "configs" / published))
    run_config.check_sections(config)
    if config.system != runs.system:
        raise errors.UserError(
            f"--config={recipe}: is a recipe of the system {config.system}, expected one of {runs.system}"
        )
    with config.unlocked():
        config.init_from = ""
        if "lora" in config.model:
            # Adapters of an imported file are merged.
            del config.model["lora"]
            config.optimizer.trainable = ".*"
        if recipe is None:
            # The mesh of the published training run does not apply: imported weights use all available devices.
            config.mesh = {"data": 1, "fsdp": -1, "sequence": 1}
    return config


def agreed(claims: Mapping[str, Mapping[str, Any]], prefix: str = "") -> dict[str, Any]:
    """Combine the hyper-parameters of several sources.

    Args:
      claims: source -> hyper-parameters by name; `OPTIONS`, after the sources that it cannot change, names the user's.
      prefix: prefix of the names in messages.

    Raises:
      UserError: one message with every contradiction.
    """
    facts: dict[str, Any] = {}
    origin: dict[str, str] = {}
    contradictions = []
    for source, values in claims.items():
        for key, value in values.items():
            value = tuple(value) if isinstance(value, list) else value
            if key not in facts:
                facts[key], origin[key] = value, source
            elif facts[key] != value:
                by, name = f"{facts[key]!r} by {origin[key]}", f"{prefix}{key}"
                contradictions.append(
                    f"the weights determine {name}, which is {by}, but {OPTIONS}{name} is {value!r}"
                    if source == OPTIONS
                    else f"{name} is {by}, but {value!r} by {source}"
                )
    if contradictions:
        raise errors.UserError(f"{'; '.join(contradictions)}: correct the wrong one, or leave it out")
    return facts
