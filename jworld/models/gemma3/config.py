"""Hyper-parameters of Gemma-3 with and without its vision tower."""

import dataclasses
import math
from typing import Annotated, Literal

from jworld.models.layers.config import ComputeConfig
from jworld.utils import ranges

#: Attention of a layer: to all earlier tokens, or to those of a window.
Kind = Literal["sliding", "full"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gemma3Config(ComputeConfig):
    """Hyper-parameters, by default of Gemma-3-4b-it.

    Source: the Gemma 3 report, https://arxiv.org/abs/2503.19786, and transformers 4.56 `models/gemma3`.

    Attributes:
      vocabulary: rows V of the embedding, which is also the head.
      width: model width D.
      mlp_width: inner width of the gated MLP.
      num_layers: layers of the language model.
      num_heads, num_key_heads: heads of queries, and of keys and values; the first is a multiple of the second.
      head_dim: channels of a head, independent of D.
      eps: epsilon of the norms.
      pattern: kinds of attention, repeated over the layers.
      window: tokens that a "sliding" layer attends to, including the token itself.
      query_scale: attention logits are divided by its square root.
      rope_theta, rope_factor: base of the rotary frequencies of "full" layers, and divisor of their positions.
      local_rope_theta, local_rope_factor: the same for "sliding" layers.
      image_token: id of the tokens that image features replace.
      image_tokens: tokens of one image, a square number.
      vision_width, vision_mlp_width, vision_layers, vision_heads: sizes of the vision tower; `vision_layers` is 0 for a
        model without images, such as Gemma-3-270m and 1b.
      image_size, patch_size: side of an image and of a patch, in pixels.
      vision_eps: epsilon of the norms of the vision tower.
    """

    vocabulary: Annotated[int, ranges.Range(1, 2**24)] = 262208
    width: ranges.Size = 2560
    mlp_width: ranges.Size = 10240
    num_layers: ranges.Layers = 34
    num_heads: ranges.Size = 8
    num_key_heads: ranges.Size = 4
    head_dim: ranges.Size = 256
    eps: ranges.Epsilon = 1e-6
    pattern: tuple[Kind, ...] = (*("sliding",) * 5, "full")
    window: ranges.Size = 1024
    query_scale: ranges.Positive = 256.0
    rope_theta: ranges.RopeTheta = 1e6
    rope_factor: ranges.Positive = 8.0
    local_rope_theta: ranges.RopeTheta = 1e4
    local_rope_factor: ranges.Positive = 1.0
    image_token: ranges.Index = 262144
    image_tokens: ranges.Size = 256
    vision_width: ranges.Size = 1152
    vision_mlp_width: ranges.Size = 4304
    vision_layers: ranges.LayersOrZero = 27
    vision_heads: ranges.Size = 16
    image_size: ranges.Pixels = 896
    patch_size: ranges.Pixels = 14
    vision_eps: ranges.Epsilon = 1e-6

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Kind of every layer."""
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.num_layers))

    @property
    def patches(self) -> int:
        """Patches along a side of an image."""
        return self.image_size // self.patch_size

    @property
    def pool(self) -> int:
        """Patches along a side that are averaged to one token."""
        return self.patches // math.isqrt(self.image_tokens)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_heads % self.num_key_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_key_heads {self.num_key_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} must be even for rotary positions")
        if not self.pattern:
            raise ValueError("pattern is empty: name the kinds of attention, such as ('sliding', 'full')")
        if not self.vision_layers:
            return
        if self.vision_width % self.vision_heads:
            raise ValueError(f"vision_width {self.vision_width} is not a multiple of vision_heads {self.vision_heads}")
        side = math.isqrt(self.image_tokens)
        if self.image_size % self.patch_size or side**2 != self.image_tokens or self.patches % side:
            raise ValueError(
                f"image_tokens {self.image_tokens} must be a square whose side divides the {self.patches} patches of "
                f"{self.patch_size} pixels along an image of {self.image_size}"
            )
