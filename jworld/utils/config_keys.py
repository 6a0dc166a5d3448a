"""Single keys of a config: new values from the command line, and what each key means.

`types` names the dataclass of each section by its dotted name, such as {"optimizer": OptimizerConfig}. A key that the
dataclass has can be set whether or not the config lists it, and its value is read as the dataclass's type.
"""

import difflib
import inspect
import re
import types as python_types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import ml_collections
from absl import flags
from ml_collections import config_flags

from jworld.utils import errors, ranges
from jworld.utils.config import RENAMED
from jworld.utils.ranges import as_tuple, describe, fits

_NO_TYPES: Mapping[str, type] = {}
#: An entry below "Attributes:" in a docstring: one name or several, and the text that follows.
_ATTRIBUTE = re.compile(r"^(\s+)(\w+(?:, \w+)*): (.*)$")


def override(
    config: ml_collections.ConfigDict, changes: Mapping[str, str], types: Mapping[str, type] = _NO_TYPES
) -> ml_collections.ConfigDict:
    """Return a locked copy of a config with new values, given as a command line does: text by dotted key.

    Raises:
      UserError: a key does not exist, or its text is not a value of the key's type.
    """
    changed = ml_collections.ConfigDict(config.to_dict())
    for key, text in changes.items():
        _set(changed, current_name(key), text, types)
    return changed.lock()


def current_name(key: str) -> str:
    """Return the name that a key has now; older names of `config.RENAMED` are still accepted."""
    return RENAMED.get(key, key)


def _set(config: ml_collections.ConfigDict, key: str, text: str, types: Mapping[str, type]) -> None:
    *parents, name = key.split(".")
    node: Any = config
    for depth, parent in enumerate(parents):
        path = ".".join(parents[: depth + 1])
        if parent not in node or (node[parent] is None and path in types):
            if path not in types:
                raise errors.UserError(_unknown(path, node, types))
            node[parent] = ml_collections.ConfigDict()
        node = node[parent]
        if not isinstance(node, ml_collections.ConfigDict):
            raise errors.UserError(f"config.{path} is a single value, so there is no key config.{key}")
    hints = field_types(types[".".join(parents)]) if ".".join(parents) in types else {}
    current = as_tuple(node[name]) if name in node else None
    if key in types or isinstance(current, ml_collections.ConfigDict):
        raise errors.UserError(
            f"config.{key} is a section with the keys {_listed(key, current, types)}: set one of them"
        )
    if name not in hints and name not in node:
        raise errors.UserError(_unknown(key, node, types))
    hint = hints.get(name, Any if current is None else type(current))
    try:
        value = parse(text, hint)
    except ValueError as error:
        now = f" (it is {current!r})" if name in node else ""
        raise errors.UserError(f"config.{key}: expected {describe(hint)}, got {text!r}{now}") from error
    if name in node:
        # The value now may be of a narrower type, such as None for an optional number.
        del node[name]
    node[name] = value


def parse(text: str, hint: Any) -> Any:
    """Return the value of a text, read by the parser of `config_flags` for the type, or raise a ValueError."""
    if text == "None" and fits(None, hint):
        return None
    if _is_texts(hint) and not text.startswith(("(", "[")):
        # A sentence is one text, whatever it contains.
        return (text,) if text else ()
    kind = _parsed_type(hint)
    holder = ml_collections.ConfigDict({"value": ml_collections.FieldReference(None, field_type=kind)})
    values, argument = flags.FlagValues(), f"--config.value={text}"  # type: ignore[no-untyped-call]
    flag = config_flags.DEFINE_config_dict("config", holder, flag_values=values, sys_argv=["", argument])
    try:
        values(["", argument])
    except (flags.Error, TypeError) as error:
        raise ValueError(str(error)) from error
    value = as_tuple(flag.value.value)
    if not fits(value, hint):
        raise ValueError(f"{value!r} is not {describe(hint)}")
    return value


def _is_texts(hint: Any) -> bool:
    """Return whether a type is a list of texts of any length."""
    arguments = typing.get_args(hint)
    return typing.get_origin(hint) is tuple and ranges.unwrapped(arguments[0]) is str and arguments[-1] is Ellipsis


def _parsed_type(hint: Any) -> type:
    """Return the type whose parser reads a hint; `object` reads any Python literal, and other text as it is."""
    hint = ranges.unwrapped(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        kinds = {type(argument) for argument in arguments}
        return kinds.pop() if len(kinds) == 1 else object
    if origin in (python_types.UnionType, typing.Union):
        kinds = {_parsed_type(argument) for argument in arguments if argument is not python_types.NoneType}
        return kinds.pop() if len(kinds) == 1 else object
    if tuple in (origin, hint):
        return tuple
    return hint if hint in (bool, int, float, str) else object


def unknown(key: str, config: ml_collections.ConfigDict, types: Mapping[str, type]) -> str:
    """Return the sentence about a dotted key that a config has and nothing reads."""
    node: Any = config
    for parent in key.split(".")[:-1]:
        node = node[parent]
    others = ml_collections.ConfigDict({name: None for name in node if name != key.rpartition(".")[2]})
    return _unknown(key, others, types)


def _unknown(key: str, node: ml_collections.ConfigDict, types: Mapping[str, type]) -> str:
    section, _, name = key.rpartition(".")
    keys = _keys(section, node, types)
    near = difflib.get_close_matches(name, keys, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"the keys there are {', '.join(keys) or 'none'}"
    return f"config.{key}: this config has no such key; {hint}"


def _listed(section: str, node: ml_collections.ConfigDict | None, types: Mapping[str, type]) -> str:
    return ", ".join(_keys(section, node, types))


def _keys(section: str, node: ml_collections.ConfigDict | None, types: Mapping[str, type]) -> list[str]:
    """Return the names of keys and sections in `section`, those that the config does not list included."""
    names = list(node or ())
    if section in types:
        names += field_types(types[section])
    prefix = f"{section}." if section else ""
    names += [
        name.removeprefix(prefix).partition(".")[0] for name in types if name.startswith(prefix) and name != section
    ]
    return list(dict.fromkeys(names))


def field_types(cls: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields, with their bounds."""
    return ranges.hints(cls)


def descriptions(cls: type) -> dict[str, str]:
    """Return what the docstring of a dataclass says of each field below "Attributes:", its bases included."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        found |= _attributes(inspect.cleandoc(base.__dict__.get("__doc__") or ""))
    return found


def _attributes(text: str) -> dict[str, str]:
    _, start, block = text.partition("Attributes:\n")
    entries: list[tuple[list[str], str]] = []
    indent = ""
    for line in block.splitlines() if start else []:
        if not line.startswith(" "):
            break
        found = _ATTRIBUTE.match(line)
        if found and (not indent or found[1] == indent):
            indent = found[1]
            entries.append((found[2].split(", "), found[3]))
        elif entries:
            entries[-1] = (entries[-1][0], f"{entries[-1][1]} {line.strip()}")
    return {name: words for names, words in entries for name in names}
