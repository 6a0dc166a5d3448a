"""Downloaded checkpoints made from golden and made cases, for tests of the conversion."""

import json
import math
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import golden_cases
import made_cases
import ml_dtypes
import numpy as np
import safetensors.numpy
from flax import nnx

from conversion import engine, families, sources
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.hunyuan.transformer import HunyuanTransformer

MADE = {"base": made_cases.base, "hunyuan_diffusers": made_cases.hunyuan_diffusers}
#: Settings of the small cases: float32, to compare with the golden outputs.
SETTINGS = ("model.dtype=float32",)


def case(name: str) -> golden_cases.GoldenCase:
    """Return a case of `MADE`, or a golden case of WorldPlay."""
    return MADE[name]() if name in MADE else golden_cases.GoldenCase(made_cases.WORLDPLAY / name)


def download(directory: pathlib.Path, name: str, *, config: bool = True) -> pathlib.Path:
    """Fill `directory` with the weights of a case and the config.json of its program, with the usual names."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(case(name).path / "weights.safetensors", directory / sources.WEIGHTS_NAME)
    if config:
        settings = case(name).config
        values = settings["constructor"] if "constructor" in settings else settings["transformer_config"]
        (directory / "config.json").write_text(json.dumps(values))
    return directory


def autoencoder(
    directory: pathlib.Path, case: golden_cases.GoldenCase, *, config: bool = True, **changes: Any
) -> pathlib.Path:
    """Fill `directory` with the weights of an autoencoder's golden case and its config.json with changes."""
    directory.mkdir(parents=True)
    shutil.copy(case.path / "weights.safetensors", directory / sources.WEIGHTS_NAME)
    if config:
        statistics = {name: case.config[name] for name in ("latents_mean", "latents_std") if name in case.config}
        values = case.config.get("constructor") or case.config["model"]
        (directory / "config.json").write_text(json.dumps(values | statistics | changes))
    return directory


def hunyuan15_autoencoder(directory: pathlib.Path) -> pathlib.Path:
    """Fill `directory` with random weights of diffusers' own class, as it saves them."""
    import diffusers

    return random_weights(
        directory,
        diffusers.AutoencoderKLHunyuanVideo15,
        latent_channels=4,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        spatial_compression_ratio=8,
        temporal_compression_ratio=4,
    )


def wan_autoencoder(directory: pathlib.Path, **changes: Any) -> pathlib.Path:
    """Fill `directory` with random weights of diffusers' own class, as it saves them; its config.json with changes."""
    import diffusers

    random_weights(
        directory,
        diffusers.AutoencoderKLWan,
        base_dim=8,
        z_dim=4,
        num_res_blocks=1,
        latents_mean=[-0.7571, -0.7089, -0.9113, 0.1075],
        latents_std=[2.8184, 1.4541, 2.3275, 2.6558],
    )
    config = directory / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    return directory


def random_weights(directory: pathlib.Path, kind: type[Any], **settings: Any) -> pathlib.Path:
    """Fill `directory` with random weights of a class of diffusers."""
    made_cases.random_model(kind, **settings).save_pretrained(directory)
    return directory


def rewrite(directory: pathlib.Path, tensors: Mapping[str, np.ndarray]) -> pathlib.Path:
    """Replace the weights file by one with other tensors."""
    safetensors.numpy.save_file(dict(tensors), directory / sources.WEIGHTS_NAME)
    return directory


def contents(path: pathlib.Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return dtype, shape and bytes of every tensor of a checkpoint."""
    with sources.open_source(path) as source:
        return {
            name: (str(info.dtype), info.shape, source.read(name).tobytes()) for name, info in source.tensors.items()
        }


def as_bfloat16(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in tensors.items()}


def published(path: pathlib.Path, *, layers: int, actions: bool = True) -> tuple[int, int]:
    """Write layers of the published model in bfloat16 as a sparse file of zeros.

    Returns:
      Bytes of all tensors, and of the largest stacked parameter.
    """
    cfg = HunyuanConfig(num_layers=layers, actions=actions)
    with nnx.use_eager_sharding(False):
        model = nnx.eval_shape(lambda: HunyuanTransformer(cfg, rngs=nnx.Rngs(0)))
    shapes = engine.parameter_shapes(nnx.state(model, nnx.Param))
    rules = families.FAMILIES["worldplay"].layouts["original"].rules(cfg)
    size = headers_only(path, engine.plan(shapes, rules))
    return size, max(2 * math.prod(shape) for name, shape in shapes.items() if name.startswith("blocks/"))


def headers_only(path: pathlib.Path, places: Mapping[str, engine.TensorPlacement]) -> int:
    """Write these tensors in bfloat16 as a sparse file of zeros; -> their size in bytes."""
    header, position = {}, 0
    for name, place in places.items():
        end = position + 2 * math.prod(place.shape)
        header[name] = {"dtype": "BF16", "shape": list(place.source_shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + position)
    return position
