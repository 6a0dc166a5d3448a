"""Run configurations: recipes with `get_config(variant)`, whose values are checked before any device is touched."""

import dataclasses
import difflib
import json
import pathlib
import runpy
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import ml_collections

from jworld.utils import errors, files, hub_folders, resources

FILE_NAME = "config.json"

#: What every recipe has at its top level.
SECTIONS = (
    "system",
    "seed",
    "steps",
    "global_batch",
    "init_from",
    "mesh",
    "model",
    "data",
    "optimizer",
    "loss",
    "checkpoint",
    "log",
    "sample",
)
#: What a recipe may have in addition.
OPTIONAL_SECTIONS = ("epochs", "evaluation")

#: Keys that had another name: old -> new. Saved configs and command lines may still use the old ones.
RENAMED: dict[str, str] = {
    "loss.given_frames": "loss.conditioning_frames",
    "model.world.codec": "model.world.autoencoder_file",
    "model.world.codec_ratio": "model.world.autoencoder_ratio",
    "sample.rollout.given_frames": "sample.rollout.conditioning_frames",
    "sample.rollout.told_guidance": "sample.rollout.guidance_embedding_scale",
}
#: Earlier values of keys, which saved configs may still have -> their present values.
RENAMED_VALUES: dict[str, dict[str, str]] = {"loss.target": {"average": "ema"}}

Section = TypeVar("Section")


def load_recipe(name: str) -> ml_collections.ConfigDict:
    """Return the config of `path/to/recipe.py` or `path/to/recipe.py:variant`.

    A recipe such as configs/ar_mem.py comes from the current folder or, if it is not there, from jworld's own.

    Raises:
      UserError: the file is absent, has no `get_config`, or refuses the variant.
    """
    path, *variant = name.split(":", 1)
    file = resources.find(path)
    if not file.is_file():
        shipped = ", ".join(sorted(f"configs/{each.name}" for each in (resources.root() / "configs").glob("*.py")))
        near = difflib.get_close_matches(path, shipped.split(", "), 1)
        hint = f"did you mean {near[0]}?" if near else f"jworld has {shipped}"
        raise errors.UserError(f"--config={name}: there is no file {path}; {hint}")
    recipe = runpy.run_path(str(file))
    if "get_config" not in recipe:
        raise errors.UserError(f"--config={name}: {path} has no get_config(variant), which a recipe needs")
    try:
        return recipe["get_config"](*variant)
    except ValueError as error:
        raise errors.UserError(f"--config={name}: {error}") from error


def check_sections(config: ml_collections.ConfigDict) -> None:
    """Raise a `UserError` if the top level of a config is not that of `SECTIONS`, with some `OPTIONAL_SECTIONS`."""
    missing = [s for s in SECTIONS if s not in config]
    unknown = [s for s in config if s not in (*SECTIONS, *OPTIONAL_SECTIONS)]
    if missing or unknown:
        raise errors.UserError(f"config: missing sections {missing}, unknown sections {unknown}, expected {SECTIONS}")


def section(cls: type[Section], values: Mapping[str, Any], name: str) -> Section:
    """Return the frozen dataclass of `config.<name>`; lists become tuples.

    Raises:
      UserError: an unknown or missing key, a wrong type, or what the dataclass itself refuses.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    chosen: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(sorted(fields))}"
            raise errors.UserError(f"config.{name}.{key}: unknown key, {hint}")
        value = as_tuple(value)
        if not fits(value, hints[key]):
            raise errors.UserError(f"config.{name}.{key}: found {value!r}, expected {describe(hints[key])}")
        chosen[key] = float(value) if hints[key] is float else value
    for field in fields.values():
        if field.default is dataclasses.MISSING and field.name not in chosen:
            raise errors.UserError(f"config.{name}.{field.name} is missing")
    try:
        return cls(**chosen)
    except ValueError as error:
        raise errors.UserError(f"config.{name}: {error}") from error


def save(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Write the resolved config as JSON; the file is complete or absent."""
    files.write_json(directory / FILE_NAME, config.to_dict(), indent=2, sort_keys=True)


def load(directory: pathlib.Path) -> ml_collections.ConfigDict:
    """Return the resolved config of a run's folder; keys that had another name get the present one.

    Raises:
      UserError: the folder has none, or the file is damaged.
    """
    path = hub_folders.find(directory) / FILE_NAME
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise errors.UserError(f"{path} is missing: name the folder that a training run wrote") from error
    except json.JSONDecodeError as error:
        raise errors.UserError(f"{path} is not valid JSON ({error}): restore it from the run that wrote it") from error
    _rename(values)
    config = ml_collections.ConfigDict(values)
    check_sections(config)
    return config.lock()


def _rename(values: dict[str, Any]) -> None:
    """Give keys and values their present names; a value under the present name of its key counts more."""
    for old, new in RENAMED.items():
        found = _section_of(values, old)
        if found is None:
            continue
        value, target = found.pop(old.rpartition(".")[2]), values
        *parents, name = new.split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
        target.setdefault(name, value)
    for key, present in RENAMED_VALUES.items():
        found, name = _section_of(values, key), key.rpartition(".")[2]
        if found is not None and isinstance(found[name], str):
            found[name] = present.get(found[name], found[name])


def _section_of(values: dict[str, Any], key: str) -> dict[str, Any] | None:
    """Return the section that holds a dotted key, None where it is absent."""
    node: Any = values
    *parents, name = key.split(".")
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    return node if isinstance(node, dict) and name in node else None


def value_at(config: Any, key: str, default: Any = None) -> Any:
    """Return the value of a dotted key of a config; `default` where the config does not list it."""
    node = config
    for name in key.split("."):
        if node is None or name not in node:
            return default
        node = node[name]
    return node


def as_tuple(value: Any) -> Any:
    """Return a value with every list in it as a tuple."""
    return tuple(as_tuple(item) for item in value) if isinstance(value, list | tuple) else value


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is one of a type hint; an integer is also a number."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in arguments
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, option) for option in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(fits, value, arguments))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if hint in (None, types.NoneType) else isinstance(value, hint)


def describe(hint: Any) -> str:
    """Return a type hint in words, such as "an integer or None"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}" if len(arguments) > 1 else repr(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(map(describe, arguments)))
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}, such as {','.join(map(_example, arguments))}"
    if tuple in (origin, hint):
        return f"a list such as {_example(hint)}"
    if hint in (None, types.NoneType):
        return "None"
    words = {int: "an integer", float: "a number", bool: "True or False", str: "text"}
    return words.get(hint, "any value" if hint is Any else getattr(hint, "__name__", str(hint)))


def _example(hint: Any) -> str:
    """Return a value of a type as one writes it on the command line."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if tuple in (origin, hint):
        inner = arguments or (int, ...)
        items = (inner[0], inner[0]) if inner[-1] is Ellipsis else inner
        return ",".join(f"({_example(item)})" if typing.get_origin(item) is tuple else _example(item) for item in items)
    return {int: "1", float: "0.5", bool: "True"}.get(hint, "text")
