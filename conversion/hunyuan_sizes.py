"""Sizes of a HunyuanVideo-1.5 transformer, read from the shapes of its tensors."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from conversion.engine import Shape
from jworld.models.hunyuan.config import HunyuanConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
    """Names in one layout of the tensors whose shapes determine the sizes.

    Attributes:
      patch, head, mlp, text, glyph_in, glyph_out, vision: weights of the patch embedding, the norm of q in layer 0, the
        first linear layer of its MLP, the text embedding, the first two layers for glyphs and the first for the image.
      glyph: prefix of all names of the glyph projection.
      layers, refiner: prefix of the names in a layer, up to its number.
      actions: parts of names that only WorldPlay's action models have; empty if the layout does not support them.
    """

    patch: str
    head: str
    mlp: str
    text: str
    glyph: str
    glyph_in: str
    glyph_out: str
    vision: str
    layers: str
    refiner: str
    actions: tuple[str, ...] = ()


def from_shapes(shapes: Mapping[str, Shape], names: Names) -> dict[str, Any]:
    """Return the fields of `HunyuanConfig` that follow from the shapes, without implausible ones.

    Neither rope_dims and rope_theta nor the kind of attention (chunk-causal or full) follow from shapes.
    """
    sizes: dict[str, Any] = {"actions": any(part in name for name in shapes for part in names.actions)}
    if layers := _count(shapes, names.layers):
        sizes["num_layers"] = layers
    if refiner := _count(shapes, names.refiner):
        sizes["refiner_layers"] = refiner
    if patch := _sizes(shapes, names.patch, 5):
        # The input is noisy latents, condition latents and one mask channel.
        sizes |= {"width": patch[0], "channels": (patch[1] - 1) // 2, "patch_size": patch[2:]}
        if (head := _sizes(shapes, names.head, 1)) and patch[0] % head[0] == 0:
            sizes["num_heads"] = patch[0] // head[0]
        if mlp := _sizes(shapes, names.mlp, 2):
            sizes["mlp_ratio"] = _ratio(mlp[0], patch[0])
    if text := _sizes(shapes, names.text, 2):
        sizes["text_dim"] = text[1]
    if vision := _sizes(shapes, names.vision, 2):
        sizes["vision_dim"] = vision[1]
    if not any(name.startswith(names.glyph) for name in shapes):
        sizes["glyph_dim"] = None
    elif glyph := _sizes(shapes, names.glyph_in, 2):
        sizes |= {"glyph_hidden": glyph[0], "glyph_dim": glyph[1]}
    if glyph_out := _sizes(shapes, names.glyph_out, 2):
        sizes["glyph_out"] = glyph_out[0]
    return sizes


def fixed_in_code(cfg: HunyuanConfig, **values: Any) -> list[str]:
    """Return a sentence for each field of `cfg` that differs from the only value another program supports."""
    return [
        f"{name} is {getattr(cfg, name)}, always {value} there"
        for name, value in values.items()
        if getattr(cfg, name) != value and not (name.startswith("glyph") and cfg.glyph_dim is None)
    ]


def _sizes(shapes: Mapping[str, Shape], name: str, rank: int) -> Shape | None:
    shape = shapes.get(name)
    return shape if shape is not None and len(shape) == rank and all(shape) else None


def _count(shapes: Mapping[str, Shape], prefix: str) -> int:
    """Count the different numbers that follow `prefix`; in a file, a number may have any size."""
    return len({name[len(prefix) :].split(".", 1)[0] for name in shapes if name.startswith(prefix)})


def _ratio(hidden: int, width: int) -> float:
    """Return the ratio whose product with `width`, truncated as in the model, is `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
