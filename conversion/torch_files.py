"""Writer of torch.save files: a dict of plain tensors, which torch.load reads with weights_only=True.

The tensors are memory-mapped from a safetensors file, so that they are not copied.
"""

import json
import pathlib

import numpy as np

from jworld.utils import errors

SUFFIXES = (".pt", ".pth")
_BFLOAT16 = "BF16"
# numpy has no bfloat16: its bits are read as integers.
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, _BFLOAT16: np.int16}


def require() -> None:
    """Raise a `UserError` if PyTorch is not installed."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise errors.UserError(
            f'writing {" or ".join(SUFFIXES)} needs PyTorch: pip install "jworld[torch]", or give a .safetensors file'
        ) from error


def write(path: pathlib.Path, source: pathlib.Path) -> None:
    """Write the tensors of `source`, a file of `tensor_files`, to `path`."""
    import torch

    with source.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        offset = 8 + length + entry["data_offsets"][0]
        mapped = np.memmap(source, _DTYPES[entry["dtype"]], mode="c", offset=offset, shape=tuple(entry["shape"]))
        tensor = torch.from_numpy(mapped)
        tensors[name] = tensor.view(torch.bfloat16) if entry["dtype"] == _BFLOAT16 else tensor
    torch.save(tensors, path)
