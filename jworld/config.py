"""Run configurations: recipes are Python files with `get_config(variant)`; values are checked before any device is touched."""

import dataclasses
import json
import pathlib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import ml_collections
from absl import flags
from ml_collections import config_flags

from jworld import errors

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

Section = TypeVar("Section")


def define_flag() -> Any:
    """The `--config=configs/recipe.py:variant` flag, with `--config.a.b=value` overrides."""
    return config_flags.DEFINE_config_file(
        "config", None, "Recipe: configs/<name>.py, or configs/<name>.py:<variant>; override with --config.a.b=value."
    )


def parse_flags(argv: Sequence[str], flag: Any) -> ml_collections.ConfigDict:
    """Parse the command line; a wrong key, value or file is a `UserError`."""
    try:
        rest = flags.FLAGS(list(argv))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())
        raise errors.UserError(f"command line: {reason} (see --help; recipes lie in configs/)") from error
    if rest[1:]:
        raise errors.UserError(f"command line: {rest[1]!r} is no flag: write --name=value (see --help)")
    if flag.value is None:
        raise errors.UserError("--config is missing: name a recipe, for example --config=configs/ar_mem.py")
    check_sections(flag.value)
    return flag.value


def check_sections(config: ml_collections.ConfigDict) -> None:
    missing, unknown = [s for s in SECTIONS if s not in config], [s for s in config if s not in SECTIONS]
    if missing or unknown:
        raise errors.UserError(f"config: missing sections {missing}, unknown sections {unknown}, expected {SECTIONS}")


def section(cls: type[Section], values: Mapping[str, Any], name: str, **extra: Any) -> Section:
    """A frozen dataclass from `config.<name>`; lists become tuples.

    Raises:
      UserError: an unknown or missing key, a wrong type, or what the dataclass itself refuses.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    chosen: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            raise errors.UserError(f"config.{name}.{key}: unknown key, expected one of {', '.join(sorted(fields))}")
        value = _as_tuple(value)
        if not _fits(value, hints[key]):
            raise errors.UserError(f"config.{name}.{key}: found {value!r}, expected {_describe(hints[key])}")
        chosen[key] = float(value) if hints[key] is float else value
    required = [f.name for f in fields.values() if f.default is dataclasses.MISSING and f.name not in {**chosen, **extra}]
    if required:
        raise errors.UserError(f"config.{name}.{required[0]} is missing")
    try:
        return cls(**chosen, **extra)
    except ValueError as error:
        raise errors.UserError(f"config.{name}: {error}") from error


def save(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Write the resolved config as JSON; the file is complete or absent."""
    partial = directory / (FILE_NAME + ".partial")
    partial.write_text(json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n")
    partial.replace(directory / FILE_NAME)


def load(directory: pathlib.Path) -> ml_collections.ConfigDict:
    """The resolved config of a run's folder.

    Raises:
      UserError: the folder has none, or it is not one.
    """
    path = directory / FILE_NAME
    try:
        values = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise errors.UserError(f"{path} is missing: name the folder that a training run wrote") from error
    except json.JSONDecodeError as error:
        raise errors.UserError(f"{path} is not valid JSON ({error}): restore it from the run that wrote it") from error
    config = ml_collections.ConfigDict(values)
    check_sections(config)
    return config.lock()


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list | tuple) else value


def _fits(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(_fits(value, option) for option in arguments)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is Ellipsis:
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return value is None if hint in (None, types.NoneType) else isinstance(value, hint)


def _describe(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
