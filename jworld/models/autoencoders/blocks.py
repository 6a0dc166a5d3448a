"""Building blocks of the video autoencoders: norms, residual and attention blocks, encoder and decoder.

Every layer is a function (x [B, F, H, W, C], cache, latents) -> (y, cache). The cache is its state for a video that is
processed in pieces: a pytree of arrays, () for no state; None starts a video. `latents` [B, f, h, w, z] condition the
norms of CogVideoX's decoder; None elsewhere.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.layers.attention import ChunkCausal, attention
from jworld.models.layers.causal_conv import Border, CausalConv, Conv
from jworld.models.layers.linear import default_init

Cache = Any
#: Context of attention: the pixels of one frame, or of this frame and all earlier ones.
Span = Literal["frame", "causal"]
Layer = Callable[[jax.Array, Cache, jax.Array | None], tuple[jax.Array, Cache]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Style:
    """Settings shared by all layers of one autoencoder.

    Attributes:
      past: padding of convolutions before the first frame.
      border: padding of convolutions outside a frame.
      norm: (channels, rngs=) -> norm, called as norm(x), or with latents as norm(x, latents).
      dtype: activations and convolutions; norms and softmax compute in float32.
    """

    past: Border
    border: Border
    norm: Callable[..., Any]
    dtype: Any
    param_dtype: Any

    def causal(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: tuple[int, int, int] = (3, 3, 3),
        kind: type[CausalConv] = CausalConv,
        rngs: nnx.Rngs,
    ) -> CausalConv:
        return kind(
            in_channels,
            out_channels,
            kernel,
            past=self.past,
            border=self.border,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )

    def conv(
        self, in_channels: int, out_channels: int, kernel: tuple[int, ...], *, rngs: nnx.Rngs, **kwargs: Any
    ) -> Conv:
        return Conv(
            in_channels, out_channels, kernel, dtype=self.dtype, param_dtype=self.param_dtype, rngs=rngs, **kwargs
        )

    def linear(self, in_channels: int, out_channels: int, *, rngs: nnx.Rngs) -> nnx.Linear:
        """Create a convolution of one pixel and one frame."""
        return nnx.Linear(
            in_channels,
            out_channels,
            kernel_init=default_init,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )


def run(layers: Sequence[Layer], x: jax.Array, cache: Cache, latents: jax.Array | None) -> tuple[jax.Array, Cache]:
    """Run layers in order; the cache is the tuple of their caches."""
    caches = (None,) * len(layers) if cache is None else cache
    updated = []
    for layer, own in zip(layers, caches, strict=True):
        x, own = layer(x, own, latents)
        updated.append(own)
    return x, tuple(updated)


class ChannelNorm(nnx.Module):
    """Norm x / ||x|| * sqrt(C) * scale over the channels [..., C], in float32; ||x|| is at least 1e-12."""

    def __init__(self, channels: int, *, param_dtype: Any, rngs: nnx.Rngs):
        self.scale = nnx.Param(jnp.ones(channels, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        length = jnp.sqrt(jnp.sum(jnp.square(wide), axis=-1, keepdims=True))
        scale = self.scale[...].astype(jnp.float32) * x.shape[-1] ** 0.5
        scaled: jax.Array = wide / jnp.maximum(length, 1e-12) * scale
        return scaled.astype(x.dtype)


class ResidualBlock(nnx.Module):
    """Residual block: norm, SiLU, convolution, twice; a linear shortcut if the width changes."""

    def __init__(self, in_channels: int, out_channels: int, *, style: Style, rngs: nnx.Rngs):
        self.norm1 = style.norm(in_channels, rngs=rngs)
        self.conv1 = style.causal(in_channels, out_channels, rngs=rngs)
        self.norm2 = style.norm(out_channels, rngs=rngs)
        self.conv2 = style.causal(out_channels, out_channels, rngs=rngs)
        changes = in_channels != out_channels
        self.shortcut = style.linear(in_channels, out_channels, rngs=rngs) if changes else None

    def __call__(self, x: jax.Array, cache: Cache, latents: jax.Array | None) -> tuple[jax.Array, Cache]:
        first, second = (None, None) if cache is None else cache
        y, first = self.conv1(nnx.silu(normed(self.norm1, x, latents)), first)
        y, second = self.conv2(nnx.silu(normed(self.norm2, y, latents)), second)
        return y + (x if self.shortcut is None else self.shortcut(x)), (first, second)


class AttentionBlock(nnx.Module):
    """Attention with one head of width C over the pixels of a frame, or of a frame and all earlier ones in the call.

    Causal attention needs the video in one call: it has no cache.
    """

    def __init__(self, channels: int, *, span: Span, style: Style, rngs: nnx.Rngs):
        self.span = span
        self.norm = style.norm(channels, rngs=rngs)
        self.qkv = style.linear(channels, 3 * channels, rngs=rngs)
        self.out = style.linear(channels, channels, rngs=rngs)

    def __call__(self, x: jax.Array, cache: Cache, latents: jax.Array | None) -> tuple[jax.Array, Cache]:
        B, F, H, W, _ = x.shape
        # Column by column: queries sharded over the mesh then match the sharding of the width.
        tokens, mask = ("(b f) (w h)", None) if self.span == "frame" else ("b (f w h)", ChunkCausal(H * W))
        qkv = einops.rearrange(self.qkv(normed(self.norm, x, latents)), f"b f h w c -> {tokens} 1 c")
        y = attention(*jnp.split(qkv, 3, axis=-1), mask=mask)
        return x + self.out(einops.rearrange(y, f"{tokens} 1 c -> b f h w c", b=B, f=F, w=W)), ()


def middle(channels: int, span: Span | None, *, style: Style, rngs: nnx.Rngs) -> list[Any]:
    """Create two residual blocks around an attention block, or without one (`span` None)."""
    blocks: list[Any] = [ResidualBlock(channels, channels, style=style, rngs=rngs) for _ in range(2)]
    if span is not None:
        blocks.insert(1, AttentionBlock(channels, span=span, style=style, rngs=rngs))
    return blocks


class Level(nnx.Module):
    """Residual blocks of one resolution and, except at the last level, the layer to the next resolution."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, sampler: Any, *, style: Style, rngs: nnx.Rngs):
        widths = (in_channels, *(out_channels,) * blocks)
        self.blocks = nnx.List([ResidualBlock(widths[i], widths[i + 1], style=style, rngs=rngs) for i in range(blocks)])
        self.sampler = sampler

    def __call__(self, x: jax.Array, cache: Cache, latents: jax.Array | None) -> tuple[jax.Array, Cache]:
        layers = [*self.blocks] if self.sampler is None else [*self.blocks, self.sampler]
        return run(layers, x, cache, latents)


class Head(nnx.Module):
    """Output layers: norm, SiLU, convolution; `shortcut` adds the means of consecutive channels of the input."""

    def __init__(self, in_channels: int, out_channels: int, *, shortcut: bool = False, style: Style, rngs: nnx.Rngs):
        self.norm = style.norm(in_channels, rngs=rngs)
        self.conv = style.causal(in_channels, out_channels, rngs=rngs)
        self.shortcut = shortcut

    def __call__(self, x: jax.Array, cache: Cache, latents: jax.Array | None) -> tuple[jax.Array, Cache]:
        y, cache = self.conv(nnx.silu(normed(self.norm, x, latents)), cache)
        return (y + group_mean(x, y.shape[-1]) if self.shortcut else y), cache


class Coder(nnx.Module):
    """Encoder or decoder: first convolution, levels, middle and head; the middle has the lowest resolution."""

    def __init__(self, *, conv_in: Any, levels: Sequence[Level], middle: Sequence[Any], head: Head, decoder: bool):
        self.conv_in = conv_in
        self.levels = nnx.List(levels)
        self.middle = nnx.List(middle)
        self.head = head
        self.decoder = decoder

    def __call__(self, x: jax.Array, cache: Cache, latents: jax.Array | None = None) -> tuple[jax.Array, Cache]:
        body = [*self.middle, *self.levels] if self.decoder else [*self.levels, *self.middle]
        return run([self.conv_in, *body, self.head], x, cache, latents)


def normed(norm: Any, x: jax.Array, latents: jax.Array | None) -> jax.Array:
    """Normalize x, conditioned on latents if there are any."""
    result: jax.Array = norm(x) if latents is None else norm(x, latents)
    return result


def group_mean(x: jax.Array, channels: int) -> jax.Array:
    """Average groups of C / channels consecutive channels: [..., C] -> [..., channels]."""
    return einops.reduce(x, "... (c g) -> ... c", "mean", c=channels)
