"""Cosmos-Predict2's t5_xxl/X.pickle, read without running anything of what such a file may hold.

A pickle names functions and calls them; this reader knows only the four that numpy arrays are made with, and even those
are stand-ins of its own, which keep their arguments. Any other name ends the reading. A file holds a list with one
float16 array [tokens, width]. Source: cosmos-predict2, `scripts/get_t5_embeddings.py`.
"""

import pathlib
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from jworld.utils.errors import UserError

_DTYPES: dict[str, np.dtype] = {"f2": np.dtype("<f2"), "f4": np.dtype("<f4")}


class _Type:
    """numpy.dtype(code, align, copy), of which the code counts, and then its state, of which the byte order does."""

    def __init__(self, code: Any, *rest: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """What an array is made of: the class and shape of an empty one, and then its state."""

    def __init__(self, *arguments: Any) -> None:
        self.shape: Any = None
        self.type: Any = None
        self.data: Any = None
        self.order: Any = "C"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, self.shape, self.type, fortran, self.data = state
        self.order = "F" if fortran else "C"


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.data, array.type, array.shape, array.order = data, dtype, shape, order
    return array


def _allowed() -> dict[tuple[str, str], Callable[..., Any]]:
    names: dict[tuple[str, str], Callable[..., Any]] = {("numpy", "ndarray"): _Array, ("numpy", "dtype"): _Type}
    for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
        names[f"{core}.multiarray", "_reconstruct"] = _Array
        names[f"{core}.numeric", "_frombuffer"] = _from_buffer
    return names


class _Unpickler(pickle.Unpickler):
    _names = _allowed()

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in self._names:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no array needs")
        return self._names[module, name]


def read(path: pathlib.Path) -> np.ndarray:
    """The embedding in a file, [tokens, width] float16 or float32.

    Raises:
      UserError: the file holds, or asks for, anything but a list with one such array.
    """
    try:
        with path.open("rb") as file:
            value = _Unpickler(file).load()
        if not (isinstance(value, list) and len(value) == 1 and isinstance(value[0], _Array)):
            raise ValueError("it holds something else")
        array = _array(value[0])
    except Exception as error:  # damaged pickles raise errors of many kinds
        raise UserError(
            f"{path}: {error}: expected a pickled list with one array [tokens, width] of float16; make it again, or "
            "encode the captions with --text-encoder t5-cosmos:FOLDER"
        ) from error
    if not np.isfinite(array).all():
        raise UserError(f"{path}: has values that are not finite: encode this caption again")
    return array


def _array(parts: _Array) -> np.ndarray:
    if not isinstance(parts.type, _Type) or parts.type.code not in _DTYPES or parts.type.order not in ("<", "="):
        raise ValueError(f"its array is of type {getattr(parts.type, 'code', None)!r}")
    if not isinstance(parts.shape, tuple) or len(parts.shape) != 2 or parts.order not in ("C", "F"):
        raise ValueError(f"its array has shape {parts.shape!r}")
    return np.frombuffer(parts.data, _DTYPES[parts.type.code]).reshape(parts.shape, order=parts.order)
