"""Writer of safetensors files one tensor at a time: the header first, then every tensor at its offset.

The safetensors library needs all tensors in memory, and does not support bfloat16 for numpy.
"""

import json
import math
import os
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

from conversion.engine import Shape

_DTYPES = {"float64": "F64", "float32": "F32", "bfloat16": "BF16", "float16": "F16"}


def write_header(
    file: BinaryIO, tensors: Mapping[str, tuple[Shape, np.dtype]], metadata: Mapping[str, str]
) -> dict[str, int]:
    """Write the header of a file with these tensors; -> offset of every tensor's bytes in the file."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offsets = {}
    position = 0
    # Larger elements first, so that all are aligned.
    for name, (shape, dtype) in sorted(tensors.items(), key=lambda item: -item[1][1].itemsize):
        end = position + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPES[str(dtype)], "shape": list(shape), "data_offsets": [position, end]}
        offsets[name], position = position, end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    file.flush()
    return {name: 8 + len(text) + offset for name, offset in offsets.items()}


def write_at(file: BinaryIO, value: np.ndarray, offset: int) -> None:
    """Write the elements of an array at an offset in bytes."""
    rest = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
    while len(rest):
        count = os.pwrite(file.fileno(), rest, offset)
        rest, offset = rest[count:], offset + count
