"""Downloads as users have them, made of the golden cases, for tests of the conversion."""

import json
import pathlib
import shutil
from collections.abc import Mapping

import golden_cases
import ml_dtypes
import numpy as np
import safetensors.numpy

from conversion import sources

WORLDPLAY = pathlib.Path(golden_cases.__file__).parent / "golden" / "worldplay"
#: What neither the shapes nor the config of the small cases tell: programs in float32, to compare with the golden ones.
SETTINGS = ("model.dtype=float32",)


def case(name: str) -> golden_cases.GoldenCase:
    return golden_cases.GoldenCase(WORLDPLAY / name)


def download(directory: pathlib.Path, name: str, *, config: bool = True) -> pathlib.Path:
    """`directory` with the weights of a golden case and the config.json of its program, under their usual names."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(case(name).path / "weights.safetensors", directory / sources.WEIGHTS_NAME)
    if config:
        told = case(name).config
        values = told["constructor"] if "constructor" in told else told["transformer_config"]
        (directory / "config.json").write_text(json.dumps(values))
    return directory


def rewrite(directory: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> pathlib.Path:
    """A file with other tensors in the place of the one there."""
    safetensors.numpy.save_file(dict(tensors), directory / sources.WEIGHTS_NAME)
    return directory


def contents(path: pathlib.Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bytes of every tensor of a checkpoint."""
    with sources.open_source(path) as source:
        return {
            name: (str(info.dtype), info.shape, source.read(name).tobytes()) for name, info in source.tensors.items()
        }


def as_bfloat16(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}
