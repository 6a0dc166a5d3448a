"""The config of a command: a recipe or a saved config, changed by the command line.

A key can be set if the config lists it or if the dataclass of its section has it. Sections belong to the config's
system or are shared by all systems. `keys` lists all keys with their meaning.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np

from jworld import systems
from jworld.models.layers import lora
from jworld.precompute import demo_data
from jworld.systems import base, common_keys
from jworld.systems.common_keys import SHARED
from jworld.training import optimizers
from jworld.utils import config as run_config
from jworld.utils import config_keys, errors, ranges

#: Sections that some configs have: dotted name -> dataclass.
OPTIONAL: Mapping[str, type] = {
    "data.encoding": demo_data.EncodingConfig,
    "model.lora": lora.LoRAConfig,
    "critic": optimizers.CriticConfig,
}


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a config.

    Attributes:
      name: dotted name below `config`.
      value: its current value.
      source: "recipe" (or "saved"), "default" or "command line".
      kind: its type in words.
      meaning: its description, "" if there is none.
    """

    name: str
    value: Any
    source: str
    kind: str
    meaning: str


def from_options(options: argparse.Namespace) -> ml_collections.ConfigDict:
    """Return the config that `arguments.add_recipe` describes; with --config.list print its keys and exit.

    Raises:
      UserError: there is no such recipe or key, or a value is not of the key's type.
    """
    if options.config is None:
        raise errors.UserError("--config is missing: name a recipe, for example --config=configs/ar_mem.py")
    base = run_config.load_recipe(options.config)
    run_config.check_sections(base)
    config = change(base, options.changes)
    if options.list_keys:
        print_keys(keys(config, base, options.changes))
        sys.exit(0)
    return config


def change(config: ml_collections.ConfigDict, changes: Mapping[str, str]) -> ml_collections.ConfigDict:
    """Return a locked copy of a config with new values: text by dotted key.

    Raises:
      UserError: there is no such key, or a value is not of the key's type.
    """
    changes = _one_length(config, changes)
    return config_keys.override(config, changes, _types_after(config, changes) if changes else {})


def _one_length(config: ml_collections.ConfigDict, changes: Mapping[str, str]) -> Mapping[str, str]:
    """Return `changes` in which steps alone replace epochs, and epochs alone replace steps."""
    if "epochs" in changes and "steps" not in changes:
        return {**changes, "steps": "0"}
    if "steps" in changes and "epochs" not in changes and config.get("epochs"):
        return {**changes, "epochs": "0"}
    return changes


def _types_after(config: ml_collections.ConfigDict, changes: Mapping[str, str]) -> dict[str, type]:
    """Return the types of the sections of the changed config, some keys of which are still unknown."""
    listed = {key: text for key, text in changes.items() if _has(config, config_keys.current_name(key))}
    for changed in (listed, {}):
        try:
            return section_types(config_keys.override(config, changed))
        except errors.UserError:
            # All changes together may be valid where a part of them, or the recipe alone, is not.
            continue
    return dict(SHARED)


def _has(config: ml_collections.ConfigDict, key: str) -> bool:
    node: Any = config
    for part in key.split("."):
        if not isinstance(node, ml_collections.ConfigDict) or part not in node:
            return False
        node = node[part]
    return True


def section_types(config: ml_collections.ConfigDict) -> dict[str, type]:
    """Return the dataclass of each section by dotted name.

    Raises:
      UserError: the config does not make a system.
    """
    return _types(systems.create(systems.listed(config)), config)


def check_unknown(config: ml_collections.ConfigDict, system: base.AnySystem) -> None:
    """Raise a `UserError` if a config has a key that nothing reads; `system` is built from it."""
    types = _types(system, config)
    for key in _flat(config.to_dict()):
        section, _, name = key.rpartition(".")
        fields = ranges.hints(types[section]) if section in types else {}
        if not (name in fields or key in common_keys.PLAIN or section.startswith("model")):
            raise errors.UserError(config_keys.unknown(key, config, types))


def _types(system: base.AnySystem, config: ml_collections.ConfigDict) -> dict[str, type]:
    """Return the dataclass of each section of a system's config by dotted name."""
    found = {name: type(section) for name, section in _sections(system).items()}
    optional = {name: cls for name, cls in OPTIONAL.items() if _has(config, name)}
    if hasattr(system, "lora"):
        optional["model.lora"] = lora.LoRAConfig
    return {**SHARED, **optional, **found}


def _sections(system: Any) -> dict[str, Any]:
    """Return the sections of a system, its network's included, as dataclasses by dotted name."""
    model = getattr(system, "model_config", None)
    sections: dict[str, Any] = {"model": model} if dataclasses.is_dataclass(model) else {}
    sections |= system.sections()
    return sections


def keys(
    config: ml_collections.ConfigDict,
    base: ml_collections.ConfigDict,
    changes: Mapping[str, str],
    *,
    base_name: str = "recipe",
) -> list[Key]:
    """Return all keys of `config`, which is `base` with `changes`, by section in the order of the config.

    Raises:
      UserError: the config does not make a system.
    """
    given, config = config, systems.listed(config)
    types = {name: cls for name, cls in section_types(config).items() if name in SHARED or _has(config, name)}
    sections = _sections(systems.create(config))
    types |= {name: type(section) for name, section in sections.items()}
    changed = {config_keys.current_name(key) for key in changes}
    values = _flat(config.to_dict()) | _flat(given.to_dict())
    for name, cls in types.items():
        defaults = sections.get(name)
        for field in dataclasses.fields(cls):
            key = f"{name}.{field.name}".removeprefix(".")
            value = getattr(defaults, field.name, _default(field))
            if not (key in types or key in values or _has(config, key) or dataclasses.is_dataclass(value)):
                values[key] = value
    found = []
    for key in sorted(values, key=_order):
        source = "command line" if key in changed else base_name if _has(base, key) else "default"
        found.append(_key(key, values[key], types, source))
    return found


def _order(key: str) -> tuple[int, str]:
    """Sort as `SECTIONS` does, and each section by itself."""
    top = key.partition(".")[0]
    return (*run_config.SECTIONS, *run_config.OPTIONAL_SECTIONS).index(top), key.rpartition(".")[0]


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _key(name: str, value: Any, types: Mapping[str, type], source: str) -> Key:
    section, _, field = name.rpartition(".")
    if section in types and field in (hints := config_keys.field_types(types[section])):
        hint, meaning = hints[field], config_keys.descriptions(types[section]).get(field, "")
    else:
        hint, meaning = common_keys.PLAIN.get(name, (type(value), ""))
    if name == "system":
        meaning = f"{meaning}: {', '.join(systems.REGISTRY)}"
    return Key(name, value, source, ranges.describe(hint), meaning)


def print_keys(found: Sequence[Key]) -> None:
    """Print one line per key: name, value, source, type and meaning."""
    rows = [(key.name, _text(key.value), key.source, f"{key.kind}: {key.meaning}".rstrip(": .")) for key in found]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        print("  ".join([*(text.ljust(min(width, 48)) for text, width in zip(row, widths, strict=False)), row[3]]))


def _text(value: Any) -> str:
    """Return a value in the notation of the command line."""
    if isinstance(value, list | tuple):
        return f"({','.join(map(_text, value))}{',' if len(value) == 1 else ''})"
    if value is None or isinstance(value, str | bool | int | float | pathlib.Path):
        return str(value) if value != "" else "''"
    try:
        return str(np.dtype(value))
    except TypeError:
        return str(value)
