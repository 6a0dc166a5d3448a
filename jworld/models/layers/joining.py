"""Convolution over predicted latents, which joins the borders of tokens."""

from typing import Any

from flax import nnx

from jworld.models.layers.linear import zeros_init


def join_tokens(channels: int, size: int, *, param_dtype: Any, rngs: nnx.Rngs) -> nnx.Conv:
    """Return a convolution of size x size over latents [B, F, H, W, C] float32, whose output corrects them.

    It starts at zero. Every token is predicted alone by the last layer, and this corrects each by its neighbors.
    """
    return nnx.Conv(
        channels,
        channels,
        (size, size),
        kernel_init=zeros_init,
        kernel_metadata={"out_sharding": (None,) * 4},
        bias_metadata={"out_sharding": (None,)},
        param_dtype=param_dtype,
        rngs=rngs,
    )
