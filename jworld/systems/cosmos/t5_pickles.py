"""Reader of Cosmos-Predict2's t5_xxl/X.pickle, which executes nothing from the file: see `utils.array_pickles`.

A file holds a list with one float16 array [tokens, width]. Source: cosmos-predict2, `scripts/get_t5_embeddings.py`.
"""

import pathlib

import numpy as np

from jworld.utils import array_pickles, pickles
from jworld.utils.errors import UserError, one_line


def read(path: pathlib.Path) -> np.ndarray:
    """Read the embedding in a file, [tokens, width] float16 or float32.

    Raises:
      UserError: the file holds, or names, anything but a list with one such array.
    """
    fix = "make it again, or encode the captions with --text-encoder t5-cosmos:FOLDER"
    content = pickles.read_checked(path, fix=fix)
    try:
        value = array_pickles.load_checked(content)
        if not (isinstance(value, list) and len(value) == 1 and isinstance(value[0], array_pickles.StoredArray)):
            raise ValueError("it holds something else")
        array = value[0].to_numpy()
        if array.dtype not in (np.float16, np.float32):
            raise ValueError(f"its array is of type {array.dtype.str[1:]!r}")
        if array.ndim != 2:
            raise ValueError(f"its array has shape {array.shape!r}")
    except ValueError as error:
        raise UserError(
            f"{path}: {one_line(error)}: expected a pickled list with one array [tokens, width] of float16: {fix}"
        ) from error
    if not np.isfinite(array).all():
        raise UserError(f"{path}: has values that are not finite: encode this caption again")
    return array
