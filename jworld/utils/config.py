"""Run configurations: recipes with `get_config(variant)`, whose values are checked before any device is touched."""

import dataclasses
import difflib
import pathlib
import runpy
import traceback
from collections.abc import Mapping
from typing import Any, TypeVar

import ml_collections

from jworld.utils import errors, files, hub_folders, ranges, resources

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
OPTIONAL_SECTIONS = ("epochs", "evaluation", "critic")

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
    """Return the config of `path/to/recipe.py` or `path/to/recipe.py:variant`, a Python file, which is executed.

    A recipe such as configs/ar_mem.py comes from the current folder or, if it is not there, from jworld's own.

    Raises:
      UserError: the file is absent, is not a Python file with `get_config`, or refuses the variant.
    """
    path, *variant = name.split(":", 1)
    file = resources.find(path)
    if not file.is_file():
        shipped = ", ".join(sorted(f"configs/{each.name}" for each in (resources.root() / "configs").glob("*.py")))
        near = difflib.get_close_matches(path, shipped.split(", "), 1)
        hint = f"did you mean {near[0]}?" if near else f"jworld has {shipped}"
        raise errors.UserError(f"--config={name}: there is no file {path}; {hint}")
    try:
        recipe = runpy.run_path(str(file))
    except (Exception, SystemExit) as error:  # whatever the file raises
        raise errors.UserError(f"--config={name}: {path} cannot be run ({_raised(error, file)}): correct it") from error
    if not callable(recipe.get("get_config")):
        raise errors.UserError(f"--config={name}: {path} has no get_config(variant), which a recipe needs")
    try:
        config = recipe["get_config"](*variant)
    except ValueError as error:
        raise errors.UserError(f"--config={name}: {error}") from error
    except (Exception, SystemExit) as error:  # as above
        raise errors.UserError(
            f"--config={name}: get_config of {path} fails ({_raised(error, file)}): correct it"
        ) from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise errors.UserError(
            f"--config={name}: get_config of {path} returns a {type(config).__name__}, expected a ConfigDict"
        )
    return config


def _raised(error: BaseException, file: pathlib.Path) -> str:
    """Return type, text and line of an exception that a recipe raised."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    where = "" if line is None else f" in line {line}"
    return f"{type(error).__name__}{where}: {errors.one_line(error)}"


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
    if not isinstance(values, Mapping | ml_collections.ConfigDict):
        raise errors.UserError(f"config.{name}: found {values!r}, expected a section with keys")
    hints = ranges.hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    chosen: dict[str, Any] = {}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(sorted(fields))}"
            raise errors.UserError(f"config.{name}.{key}: unknown key, {hint}")
        chosen[key] = checked(f"{name}.{key}", value, hints[key])
    for field in fields.values():
        if field.default is dataclasses.MISSING and field.name not in chosen:
            raise errors.UserError(f"config.{name}.{field.name} is missing")
    try:
        return cls(**chosen)
    except ValueError as error:
        raise errors.UserError(f"config.{name}: {error}") from error


def checked(key: str, value: Any, hint: Any) -> Any:
    """Return the value of a dotted key as its type: lists become tuples, integers floats where floats are expected.

    Raises:
      UserError: the value is not of the type, or outside its bounds.
    """
    value = ranges.as_tuple(value)
    if not ranges.fits(value, hint):
        raise errors.UserError(f"config.{key}: found {ranges.found(value)}, expected {ranges.describe(hint)}")
    return float(value) if ranges.unwrapped(hint) is float else value


def save(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Write the resolved config as JSON; the file is complete or absent."""
    files.write_json(directory / FILE_NAME, config.to_dict(), indent=2, sort_keys=True)


def load(directory: pathlib.Path) -> ml_collections.ConfigDict:
    """Return the resolved config of a run's folder; keys that had another name get the present one.

    Raises:
      UserError: the folder has none, or the file is damaged.
    """
    path = hub_folders.find(directory) / FILE_NAME
    values = files.read_json(path, fix="name the folder that a training run wrote, or restore the file")
    _rename(values)
    config = ml_collections.ConfigDict(values)
    try:
        check_sections(config)
    except errors.UserError as error:
        raise errors.UserError(f"{path} is not the config of a run: {error}") from error
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


def require_path(config: ml_collections.ConfigDict, key: str) -> None:
    """Raise a `UserError` if the path under a dotted key is empty, which would be the current folder."""
    if not str(value_at(config, key)).strip():
        raise errors.UserError(f"config.{key}: found '', expected a path")


def value_at(config: Any, key: str, default: Any = None) -> Any:
    """Return the value of a dotted key of a config; `default` where the config does not list it."""
    node = config
    for name in key.split("."):
        if node is None or name not in node:
            return default
        node = node[name]
    return node
