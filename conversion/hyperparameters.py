"""Hyper-parameters in the words of another program's config.json: one table of fields reads and writes them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jworld.utils import errors


@dataclasses.dataclass(frozen=True)
class Field:
    """A key of their config.json that is one of our hyper-parameters.

    Attributes:
      theirs: the key there.
      ours: the name of the hyper-parameter.
      read: their value -> ours, None for a value of the wrong kind.
    """

    theirs: str
    ours: str
    read: Callable[[Any], Any]


def integer(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def number(value: Any) -> float | None:
    return float(value) if type(value) in (int, float) and value > 0 else None


def switch(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def triple(value: Any) -> tuple[int, int, int] | None:
    if isinstance(value, list) and len(value) == 3 and all(integer(size) for size in value):
        return (value[0], value[1], value[2])
    return None


def read(config: Mapping[str, Any], fields: Sequence[Field], fixed: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Their config.json -> our hyper-parameters, as far as it has them; keys in neither table are ignored.

    Args:
      config: content of the file.
      fields: what is read.
      fixed: the only value of a key that our network has an equal of.
      where: the file, for messages.

    Raises:
      UserError: one message for all values of the wrong kind and all values that our network has no equal of.
    """
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for field in fields:
        theirs = config.get(field.theirs)
        if theirs is None:
            continue
        value = field.read(theirs)
        if value is None:
            wrong.append(f"{field.theirs} is {theirs!r}, which is no size for it")
        elif values.setdefault(field.ours, value) != value:
            wrong.append(f"{field.theirs} is {theirs!r}, which contradicts {field.ours} {values[field.ours]}")
    for key, expected in fixed.items():
        if key in config and config[key] != expected:
            wrong.append(f"{key} is {config[key]!r}, this network exists here only with {expected!r}")
    if wrong:
        raise errors.UserError(f"{where}: {'; '.join(wrong)}")
    return values


def write(model: Any, fields: Sequence[Field], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `read`, for a model's config."""
    values = {field.theirs: getattr(model, field.ours) for field in fields}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()} | dict(fixed)
