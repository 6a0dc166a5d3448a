"""Reader of Cosmos-Predict2's t5_xxl/X.pickle that executes nothing from the file.

A pickle names functions and calls them. This reader accepts only the four names that NumPy arrays need, and replaces
them by stand-ins that store their arguments. Any other name is an error. A file holds a list with one float16 array
[tokens, width]. Source: cosmos-predict2, `scripts/get_t5_embeddings.py`.
"""

import pathlib
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from jworld.utils import pickles
from jworld.utils.errors import UserError, one_line

_DTYPES: dict[str, np.dtype] = {"f2": np.dtype("<f2"), "f4": np.dtype("<f4")}


class _Type:
    """Stand-in for numpy.dtype(code, align, copy) and its state: stores the code and the byte order."""

    def __init__(self, code: Any, *rest: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = state[1]


class _Array:
    """Stand-in for an array, which is pickled as an empty array and its state: stores shape, dtype, order and bytes."""

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
    for core in ("numpy.core", "numpy._core"):  # before and since NumPy 2
        names[f"{core}.multiarray", "_reconstruct"] = _Array
        names[f"{core}.numeric", "_frombuffer"] = _from_buffer
    return names


class _Unpickler(pickle.Unpickler):
    _names = _allowed()

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) not in self._names:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no array needs")
        return self._names[module, name]


def read(path: pathlib.Path) -> np.ndarray:
    """Read the embedding in a file, [tokens, width] float16 or float32.

    Raises:
      UserError: the file holds, or names, anything but a list with one such array.
    """
    fix = "make it again, or encode the captions with --text-encoder t5-cosmos:FOLDER"
    try:
        value = _Unpickler(pickles.read_checked(path, fix=fix)).load()
        if not (isinstance(value, list) and len(value) == 1 and isinstance(value[0], _Array)):
            raise ValueError("it holds something else")
        array = _array(value[0])
    except UserError:
        raise
    except Exception as error:  # damaged pickles raise errors of many kinds
        raise UserError(
            f"{path}: {one_line(error)}: expected a pickled list with one array [tokens, width] of float16: {fix}"
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
