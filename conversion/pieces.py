"""Parameters in pieces that fit into memory, which several threads read and convert at the same time."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

import jax
import numpy as np

from conversion import engine
from jworld.training import array_store

#: Bytes of the rows that are read together.
BAND = 64 << 20
#: Threads: numpy, XXH3 and file operations release the interpreter's lock.
THREADS = min(4, os.cpu_count() or 1)
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some rows of a parameter.

    Attributes:
      path: path of the parameter.
      rows: the rows of its first axis; None for the whole parameter.
      tensors: the tensors in these rows by name.
      is_cut: True if the rows are those of the only tensor, and not layers with whole tensors.
      size: bytes.
    """

    path: str
    rows: slice | None
    tensors: Mapping[str, engine.TensorPlacement]
    is_cut: bool
    size: int

    def take(self, array: np.ndarray) -> Iterator[tuple[str, np.ndarray, slice | None]]:
        """Yield the name, the values and the rows (None for all) of every tensor in the piece's values."""
        for name, place in self.tensors.items():
            if self.is_cut:
                yield name, array, self.rows
            else:
                yield name, place.take(array, self.rows.start if self.rows else 0), None


def split(
    path: str, described: jax.ShapeDtypeStruct, tensors: Mapping[str, engine.TensorPlacement], chunk_rows: int
) -> Iterator[Piece]:
    """Split a parameter into bands of layers, or a single tensor in our own layout into bands of rows.

    Args:
      path: path of the parameter.
      described: its shape and dtype.
      tensors: its tensors.
      chunk_rows: rows that are stored together.
    """
    size, shape = array_store.size(described), described.shape
    count = shape[0] if len(shape) > 1 else 1
    band = max(1, BAND // max(1, size // max(1, count)))
    band = -(-band // chunk_rows) * chunk_rows
    stacked = all(place.layer is not None for place in tensors.values())
    first = next(iter(tensors.values()), None)
    is_cut = not stacked and len(tensors) == 1 and first is not None and first.is_whole(shape)
    if band >= count or not (stacked or is_cut):
        yield Piece(path, None, tensors, False, size)
        return
    for start in range(0, count, band):
        stop = min(count, start + band)
        inside = {name: place for name, place in tensors.items() if is_cut or start <= (place.layer or 0) < stop}
        yield Piece(path, slice(start, stop), inside, is_cut, size // count * (stop - start))


def process(items: Iterable[Item], function: Callable[[Item], object], threads: int = THREADS) -> None:
    """Call `function` with every item, in several threads; the first exception ends it."""
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
