"""Hyper-parameters that the transformers share."""

import dataclasses

import jax.numpy as jnp

from jworld.models.layers.attention import Implementation, check_implementation
from jworld.models.layers.stack import REMAT_POLICIES
from jworld.utils import ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Precision, memory and attention of a transformer.

    Attributes:
      dtype: activations and matrix products; norms, softmax, positions and modulation stay float32.
      param_dtype: weights.
      remat: activations stored for the backward pass, a key of `REMAT_POLICIES`.
      attention: name of an attention backend, or "auto" for the kernel of the mesh's devices.
    """

    dtype: ranges.DType = jnp.bfloat16
    param_dtype: ranges.DType = jnp.float32
    remat: str = "attention"
    attention: Implementation = "auto"

    def __post_init__(self) -> None:
        ranges.check(self)
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"remat is {self.remat!r}, must be one of {', '.join(REMAT_POLICIES)}")
        check_implementation(self.attention)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(ComputeConfig):
    """Sizes of a transformer whose heads share its width.

    Attributes:
      width: model width D.
      num_heads: heads N; each has D / N channels.
      num_layers: layers.
    """

    width: ranges.Size
    num_heads: ranges.Size
    num_layers: ranges.Layers

    @property
    def head_dim(self) -> int:
        """Channels of a head."""
        return self.width // self.num_heads

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
