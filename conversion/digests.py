"""Checksums of parameters, from those of their rows, which may be read in any order and any number at a time."""

import threading
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import xxhash


class Digest:
    """Checksum of one parameter: XXH3 of those of its rows on the first axis; a vector is one row."""

    def __init__(self, described: jax.ShapeDtypeStruct) -> None:
        self._described = described
        self._rows: list[bytes] = [b""] * (described.shape[0] if len(described.shape) > 1 else 1)
        self._missing = len(self._rows)
        self._lock = threading.Lock()

    def add(self, array: np.ndarray, start: int = 0) -> bool:
        """Add the rows from `start` on; -> whether these were the last ones that were missing."""
        array = np.ascontiguousarray(array)
        rows = array if array.ndim > 1 else [array]
        found = [xxhash.xxh3_64_digest(row.reshape(-1).view(np.uint8).data) for row in rows]
        with self._lock:
            self._missing -= self._rows[start : start + len(found)].count(b"")
            self._rows[start : start + len(found)] = found
            return not self._missing

    def entry(self) -> dict[str, Any]:
        """Return the dtype, shape and checksum of the whole parameter, JSON values."""
        return {
            "dtype": str(self._described.dtype),
            "shape": list(self._described.shape),
            "checksum": xxhash.xxh3_64_hexdigest(b"".join(self._rows)),
        }


def of_all(written: Mapping[str, Mapping[str, Any]]) -> str:
    """Return one checksum of the entries of all parameters: equal for equal paths, shapes, dtypes and bits."""
    lines = [f"{path} {x['dtype']} {x['shape']} {x['checksum']}" for path, x in sorted(written.items())]
    return xxhash.xxh3_64_hexdigest("\n".join(lines).encode())
