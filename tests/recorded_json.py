"""JSON documents that record which of their values are read, to find values that a check ignores."""

from collections.abc import Iterator
from typing import Any

import numpy as np


class Object(dict[str, Any]):
    """JSON object. `[]`, `get` and a comparison read its values.

    Iteration and copies (`items`, `values`, `dict`, `|`, `**`) do not, because a copied value may never be used.
    Objects and arrays inside a shallow copy record further.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        super().__init__({key: record(value) for key, value in values.items()})
        self.names_read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        self.names_read.add(key)
        return value

    def get(self, key: str, default: Any = None) -> Any:
        self.names_read.add(key)
        return super().get(key, default)

    def __eq__(self, other: object) -> bool:
        return bool(whole(self) == other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __deepcopy__(self, memo: object) -> "Object":
        return Object(self)


class Array(list[Any]):
    """JSON array. An index, every step of an iteration, a comparison and a conversion by NumPy read its values."""

    def __init__(self, values: list[Any]) -> None:
        super().__init__(record(value) for value in list.__iter__(values))
        self.names_read: set[int] = set()

    def __getitem__(self, index: Any) -> Any:
        self.names_read.update(range(len(self))[index] if isinstance(index, slice) else [range(len(self))[index]])
        return super().__getitem__(index)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return bool(whole(self) == other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __deepcopy__(self, memo: object) -> "Array":
        return Array(self)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(whole(self), dtype)


def record(value: Any) -> Any:
    """Return the value of a JSON document, with objects and arrays that record what is read of them."""
    if isinstance(value, dict):
        return Object(value)
    return Array(value) if isinstance(value, list) else value


def whole(value: Any) -> Any:
    """Read everything in a value and return it as plain dicts and lists.

    For values that are handed over whole to what is checked, such as a row of a data set.
    """
    if isinstance(value, Object):
        return {key: whole(value[key]) for key in value}
    return [whole(item) for item in value] if isinstance(value, Array) else value


def unread(value: Object | Array) -> list[str]:
    """Return the dotted names of all values that have not been read; an empty object or array is one value."""
    names = []
    for key, item in value.items() if isinstance(value, Object) else enumerate(list.__iter__(value)):
        if isinstance(item, Object | Array) and len(item):
            names += [f"{key}.{name}" for name in unread(item)]
        elif key not in value.names_read:
            names.append(str(key))
    return names
