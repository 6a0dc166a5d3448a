"""Hyper-parameters in another program's config.json, read and written by one table of fields."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jworld.utils import errors


@dataclasses.dataclass(frozen=True)
class Field:
    """A key of the other program's config.json that is one of our hyper-parameters.

    Attributes:
      theirs: key in the config.json.
      ours: name of our hyper-parameter.
      read: value in the config.json -> our value, None for a value of the wrong kind.
    """

    theirs: str
    ours: str
    read: Callable[[Any], Any]


def integer(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and value > 0 else None


def whole(value: float) -> float:
    """Return a whole number as an integer, where config files have one."""
    return int(value) if value.is_integer() else value


def switch(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def triple(value: Any) -> tuple[int, int, int] | None:
    if isinstance(value, list) and len(value) == 3 and all(integer(size) for size in value):
        return (value[0], value[1], value[2])
    return None


def read(config: Mapping[str, Any], fields: Sequence[Field], fixed: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the hyper-parameters in another program's config.json; keys in neither table are ignored.

    Args:
      config: content of the file.
      fields: keys to read.
      fixed: keys for which our network supports only one value, and that value.
      where: the file, for messages.

    Raises:
      UserError: one message for all values of the wrong kind and all values that our network does not support.
    """
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for field in fields:
        theirs = config.get(field.theirs)
        if theirs is None:
            continue
        value = field.read(theirs)
        if value is None:
            wrong.append(f"{field.theirs} is {theirs!r}, which is not a value of the right kind")
        elif values.setdefault(field.ours, value) != value:
            wrong.append(f"{field.theirs} is {theirs!r}, which contradicts {field.ours} {values[field.ours]}")
    for key, expected in fixed.items():
        if key in config and config[key] != expected:
            wrong.append(f"{key} is {config[key]!r}, only {expected!r} is supported")
    if wrong:
        raise errors.UserError(f"{where}: {'; '.join(wrong)}")
    return values


def write(model: Any, fields: Sequence[Field], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of config.json for a model's config: the inverse of `read`."""
    values = {field.theirs: getattr(model, field.ours) for field in fields}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()} | dict(fixed)
