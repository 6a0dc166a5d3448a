"""Convolution over predicted clean latents, which joins the borders of tokens."""

from typing import Any

from flax import nnx

from jworld.models.layers.linear import zeros_init


def check(prediction: str, output_kernel: int) -> None:
    """Raise a ValueError if a network with this prediction cannot have such a convolution; size 1 is none."""
    if prediction != "clean" and output_kernel > 1:
        raise ValueError(
            f"prediction is {prediction!r}, but output_kernel needs 'clean': the convolution changes latents"
        )
    if output_kernel % 2 == 0:
        raise ValueError(f"output_kernel is {output_kernel}, expected an odd number")


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
