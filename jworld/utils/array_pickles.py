"""Pickles of plain containers, numbers, texts, bytes and NumPy arrays, from which nothing is executed.

A pickle names functions and calls them. This reader accepts only the names that NumPy arrays need, and replaces them by
stand-ins that store their arguments. Any other name is an error.
"""

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from jworld.utils import pickles
from jworld.utils.errors import one_line

#: Dtypes by their codes in pickles.
DTYPES: dict[str, np.dtype] = {
    code: np.dtype(code) for code in ("b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")
}
_ORDERS = ("<", "=", "|")


class _Type:
    """Stand-in for numpy.dtype(code, align, copy) and its state: stores the code and the byte order."""

    def __init__(self, code: Any, *rest: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]

    def known(self) -> np.dtype:
        """Return the dtype; a ValueError if it is none of `DTYPES`."""
        if not isinstance(self.code, str) or self.code not in DTYPES or self.order not in _ORDERS:
            raise ValueError(f"its array is of type {self.code!r:.40}")
        return DTYPES[self.code]


class StoredArray:
    """An array of a pickle, stored there as an empty array and its state: shape, dtype, order and bytes."""

    def __init__(self, *arguments: Any) -> None:
        self._shape: Any = None
        self._type: Any = None
        self._data: Any = None
        self._order: Any = "C"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self._shape, self._type, fortran, self._data = state
        self._order = "F" if fortran else "C"

    @classmethod
    def from_buffer(cls, data: Any, dtype: Any, shape: Any, order: Any) -> "StoredArray":
        """Stand in for the function that protocol 5 names."""
        array = cls()
        array._data, array._type, array._shape, array._order = data, dtype, shape, order
        return array

    def to_numpy(self) -> np.ndarray:
        """Return the array.

        Raises:
          ValueError: its type is none of `DTYPES`, or its shape does not fit its bytes.
        """
        if not isinstance(self._type, _Type):
            raise ValueError("its array has no type")
        dtype, shape, data = self._type.known(), self._shape, self._data
        if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"its array has shape {shape!r:.60}")
        if not isinstance(data, bytes | bytearray) or self._order not in ("C", "F"):
            raise ValueError("its array has no bytes")
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"its array of shape {list(shape)!r:.60} and type {dtype} has {len(data):,} bytes")
        return np.frombuffer(data, dtype).reshape(shape, order=self._order)


def _allowed() -> dict[tuple[str, str], Callable[..., Any]]:
    names: dict[tuple[str, str], Callable[..., Any]] = {("numpy", "ndarray"): StoredArray, ("numpy", "dtype"): _Type}
    for core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
        names[f"{core}.multiarray", "_reconstruct"] = StoredArray
        names[f"{core}.numeric", "_frombuffer"] = StoredArray.from_buffer
    return names


class _Unpickler(pickle.Unpickler):
    _names = _allowed()

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in self._names:
            raise pickle.UnpicklingError(f"it names {module:.60}.{name:.60}, which no array needs")
        return self._names[module, name]


def load(content: bytes) -> Any:
    """Return the value of a pickle, in which arrays are `StoredArray`.

    Raises:
      ValueError: the pickle is malformed, exceeds a limit of `pickles.check`, or names anything else.
    """
    pickles.check(io.BytesIO(content), len(content))
    return load_checked(io.BytesIO(content))


def load_checked(stream: io.BytesIO) -> Any:
    """Return the value of a pickle after `pickles.check`, see `load`."""
    try:
        return _Unpickler(stream).load()
    except Exception as error:  # damaged pickles raise errors of many kinds
        raise ValueError(one_line(error)) from error
