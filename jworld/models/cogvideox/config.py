"""Hyper-parameters of the CogVideoX transformer with the control blocks of The Matrix."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from jworld.models.layers.attention import Implementation, check_implementation
from jworld.models.layers.stack import REMAT_POLICIES


@dataclasses.dataclass(frozen=True, kw_only=True)
class CogVideoXConfig:
    """Hyper-parameters, by default of CogVideoX-2B: 1.69B parameters, 2.01B with the control blocks of The Matrix.

    Source: the transformer's config.json of CogVideoX-2B, and The Matrix `stage2/cogvideox/transformer.py`.

    Attributes:
      channels: latent channels C.
      patch_size: latent pixels per token in height and width; one latent frame in time.
      width: model width D.
      time_dim: width of the time embedding.
      text_dim, text_tokens: width and number of the text encoder's states; positions of the video begin after them.
      spatial_scale, temporal_scale: divisors of the positions in the sinusoids.
      control_dim: width of a control vector, one per latent frame; None for a model without control.
      control_layers: first layer that a control block follows, and the layer after the last one.
      guidance_dim: width of an embedded guidance scale added to the time, for a student distilled with guidance; None
        for
        none, as published.
      dtype: activations and matrix products; norms, softmax, positions and modulation stay float32.
      remat: activations stored for the backward pass, a key of `REMAT_POLICIES`.
      attention: name of an attention backend, or "auto" for the kernel of the mesh's devices.
    """

    channels: int = 16
    patch_size: int = 2
    width: int = 1920
    num_heads: int = 30
    num_layers: int = 30
    mlp_ratio: float = 4.0
    time_dim: int = 512
    text_dim: int = 4096
    text_tokens: int = 226
    spatial_scale: float = 1.875
    temporal_scale: float = 1.0
    norm_eps: float = 1e-5
    control_dim: int | None = None
    control_layers: tuple[int, int] = (15, 30)
    guidance_dim: int | None = None
    dtype: Any = jnp.bfloat16
    param_dtype: Any = jnp.float32
    remat: str = "attention"
    attention: Implementation = "auto"

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.width % 16:
            raise ValueError(f"width {self.width} must be a multiple of 16 for the sines of three axes")
        start, stop = self.control_layers
        if self.control_dim is not None and not 0 <= start < stop <= self.num_layers:
            raise ValueError(f"control_layers {self.control_layers} must be a part of the {self.num_layers} layers")
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"remat is {self.remat!r}, must be one of {', '.join(REMAT_POLICIES)}")
        check_implementation(self.attention)
