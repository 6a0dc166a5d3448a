"""Convolutions over video, channels last; causal ones carry their last input frames as a cache."""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.layers.linear import default_init, zeros_init

#: Padding outside a frame and before the first frame: zeros, or copies of the border.
Border = Literal["zeros", "edge"]


class _Convolution(nnx.Module):
    """Kernel and bias: [h, w, I, O] applied to each frame, or [t, h, w, I, O] applied to the video."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, ...],
        *,
        strides: tuple[int, ...] | None = None,
        padding: tuple[int, int] | None = None,
        border: Border = "zeros",
        dtype: Any,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Create the parameters.

        `padding` is (before, after) for height and for width; by default a stride of one keeps their size.
        """
        shape = (*kernel_size, in_channels, out_channels)
        self.kernel = nnx.Param(default_init(rngs.params(), shape, param_dtype))
        self.bias = nnx.Param(zeros_init(rngs.params(), (out_channels,), param_dtype))
        self.strides = strides or (1,) * len(kernel_size)
        self.padding = padding or (kernel_size[-1] // 2, (kernel_size[-1] - 1) // 2)
        self.border = border
        self.dtype = dtype

    def _convolve(self, x: jax.Array) -> jax.Array:
        """Convolve [B, F, H, W, I] -> [B, F', H', W', O]; height and width are padded, time is not."""
        x, kernel, bias = (array.astype(self.dtype) for array in (x, self.kernel[...], self.bias[...]))
        padding = [self.padding, self.padding]
        if self.border == "edge" and any(self.padding):
            x = jnp.pad(x, [(0, 0), (0, 0), *padding, (0, 0)], mode="edge")
            padding = [(0, 0), (0, 0)]
        if kernel.ndim == 4:
            y = _by_frame(x, kernel, self.strides, padding)
        elif x.shape[2] * x.shape[3] < kernel.shape[3] // 2:
            y = _by_video(x, kernel, self.strides, padding)
        else:
            one, other = (functools.partial(f, strides=self.strides, padding=padding) for f in (_by_tap, _by_video))
            y = jax.lax.platform_dependent(x, kernel, cpu=one, default=other)
        return y + bias


def _by_video(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]]) -> jax.Array:
    layout = ("NDHWC", "DHWIO", "NDHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, [(0, 0), *padding], dimension_numbers=layout)


def _by_frame(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]]) -> jax.Array:
    frames = einops.rearrange(x, "b f h w c -> (b f) h w c")
    layout = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(frames, kernel, strides, padding, dimension_numbers=layout)
    return einops.rearrange(y, "(b f) h w c -> b f h w c", b=len(x))


def _by_tap(x: jax.Array, kernel: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]]) -> jax.Array:
    """Compute `_by_video` as one convolution of frames for each frame of the kernel.

    For CPUs, where XLA (JAX 0.10) convolves frames 1.5 to 3 times as fast as video, in gradients 2 to 6 times. Slower
    with few pixels per weight, and for convolutions without padding, which compute one row too many.
    """
    last, (stride, *strides) = x.shape[1] - len(kernel), strides
    bare = kernel.shape[1] > 1 and padding == [(0, 0), (0, 0)]
    if bare:
        padding = [(0, strides[0]), (0, 0)]
    parts = [_by_frame(x[:, i : i + last + 1 : stride], tap, strides, padding) for i, tap in enumerate(kernel)]
    y = functools.reduce(jnp.add, parts)
    return y[:, :, :-1] if bare else y


class Conv(_Convolution):
    """Convolution of each frame or, without padding in time, of the video: [B, F, H, W, I] -> [B, F', H', W', O]."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return self._convolve(x)


class CausalConv(_Convolution):
    """Causal convolution over the video: an output frame depends on the current and earlier input frames.

    (x [B, F, H, W, I], cache) -> (y [B, F, H, W, O], cache). The cache is the last t - 1 frames of the input, [B, t -
    1, H, W, I] for a kernel of t frames. None starts a video, which `past` extends to the left: zeros, or copies of its
    first frame ("edge"). The output frames do not depend on how a video is split into calls.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: tuple[int, int, int], *, past: Border, **kwargs: Any
    ):
        super().__init__(in_channels, out_channels, kernel_size, **kwargs)
        self.past = past

    def __call__(
        self, x: jax.Array, cache: jax.Array | None, latents: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Convolve the next frames; `latents`, a condition of other layers of an autoencoder, is ignored."""
        x = x.astype(self.dtype)
        length = self.kernel.shape[0] - 1
        if cache is None:
            first = x[:, :1] if self.past == "edge" else jnp.zeros_like(x, shape=(x.shape[0], 1, *x.shape[2:]))
            cache = jnp.repeat(first, length, axis=1)
        x = jnp.concatenate([cache, x], axis=1)
        return self._convolve(x), x[:, x.shape[1] - length :]
