"""Sizes of a HunyuanVideo-1.5 transformer, read from the shapes of its tensors."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from conversion.engine import Shape
from jworld.models.hunyuan.config import HunyuanConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
    """The tensors whose shapes tell the sizes, by their names in one layout.

    Attributes:
      patch, head, mlp, text, glyph_in, glyph_out, vision: weights of the patch embedding, the norm of q in layer 0, the
        first linear layer of its MLP, the text embedding, the first two layers for glyphs and the first for the image.
      glyph: how all names of the glyph projection start.
      layers, refiner: how the names in a layer start, up to its number.
      actions: parts of names that only WorldPlay's action models have; empty where the layout cannot hold them.
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
    """Fields of `HunyuanConfig` that the shapes tell; what they do not tell, or not plausibly, is left out.

    Shapes tell neither rope_dims nor rope_theta, nor for which attention (chunk-causal or full) the weights are.
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
    """The fields of `cfg` that differ from the only values another program knows, each in words."""
    return [
        f"{name} is {getattr(cfg, name)}, always {value} there"
        for name, value in values.items()
        if getattr(cfg, name) != value and not (name.startswith("glyph") and cfg.glyph_dim is None)
    ]


def _sizes(shapes: Mapping[str, Shape], name: str, rank: int) -> Shape | None:
    shape = shapes.get(name)
    return shape if shape is not None and len(shape) == rank and all(shape) else None


def _count(shapes: Mapping[str, Shape], prefix: str) -> int:
    """How many different numbers follow `prefix`; a number itself may be of any size in a file."""
    return len({name[len(prefix) :].split(".", 1)[0] for name in shapes if name.startswith(prefix)})


def _ratio(hidden: int, width: int) -> float:
    """The ratio whose product with `width`, cut to a whole number as in the model, is `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)
