"""Layers between two resolutions of a video: learned, averaging, and moving pixels into channels."""

from typing import Any

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.autoencoders.blocks import Cache, Style, group_mean


class LearnedDown(nnx.Module):
    """Strided convolution to half the height and width and, with `time`, half the frames after the first.

    The first frame is passed through; frame k > 0 of the result depends on frames 2k - 2, 2k - 1 and 2k. Source: the
    Wan 2.1 VAE.
    """

    def __init__(self, channels: int, *, time: bool, style: Style, rngs: nnx.Rngs):
        self.conv = _strided(channels, channels, style=style, rngs=rngs)
        self.time_conv = style.conv(channels, channels, (3, 1, 1), strides=(2, 1, 1), rngs=rngs) if time else None

    def __call__(self, x: jax.Array, cache: Cache, latents: jax.Array | None) -> tuple[jax.Array, Cache]:
        x = self.conv(x)
        if self.time_conv is None:
            return x, ()
        if cache is None:
            return jnp.concatenate([x[:, :1], self.time_conv(x)], axis=1), x[:, -1:]
        return self.time_conv(jnp.concatenate([cache, x], axis=1)), x[:, -1:]


class LearnedUp(nnx.Module):
    """Nearest-neighbor upsampling and convolution to twice the size; with `time`, first to two frames for each.

    The first frame is passed through, and later frames do not depend on it. Source: the Wan 2.1 VAE.
    """

    def __init__(self, in_channels: int, out_channels: int, *, time: bool, style: Style, rngs: nnx.Rngs):
        self.time_conv = style.causal(in_channels, 2 * in_channels, kernel=(3, 1, 1), rngs=rngs) if time else None
        self.conv = style.conv(in_channels, out_channels, (3, 3), rngs=rngs)

    def __call__(self, x: jax.Array, cache: Cache, latents: jax.Array | None) -> tuple[jax.Array, Cache]:
        if self.time_conv is None:
            return self.conv(enlarge(x)), ()
        skipped = 1 if cache is None else 0
        y, cache = self.time_conv(x[:, skipped:], cache)
        y = einops.rearrange(y, "b f h w (t c) -> b (f t) h w c", t=2)
        return self.conv(enlarge(jnp.concatenate([x[:, :skipped], y], axis=1))), cache


class AverageDown(nnx.Module):
    """Strided convolution to half the height and width; with `time`, pairs of frames are averaged first.

    With an odd number of frames the first one stays single. Source: the CogVideoX VAE.
    """

    def __init__(self, channels: int, *, time: bool, style: Style, rngs: nnx.Rngs):
        self.time = time
        self.conv = _strided(channels, channels, style=style, rngs=rngs)

    def __call__(self, x: jax.Array, cache: Cache, latents: jax.Array | None) -> tuple[jax.Array, Cache]:
        if self.time:
            single, pairs = split_odd(x)
            means = einops.reduce(pairs, "b (f t) h w c -> b f h w c", "mean", t=2)
            x = jnp.concatenate([single, means], axis=1)
        return self.conv(x), ()


class NearestUp(nnx.Module):
    """Nearest-neighbor upsampling to twice the height and width and, with `time`, the frames.

    Then a convolution per frame.

    With an odd number of frames the first one stays single, and so does a lone frame unless `double_lone_frame`.
    Source: the CogVideoX VAE; The Matrix doubles lone frames from stage 3 on.
    """

    def __init__(self, channels: int, *, time: bool, double_lone_frame: bool, style: Style, rngs: nnx.Rngs):
        self.time = time
        self.double_lone_frame = double_lone_frame
        self.conv = style.conv(channels, channels, (3, 3), rngs=rngs)

    def __call__(self, x: jax.Array, cache: Cache, latents: jax.Array | None) -> tuple[jax.Array, Cache]:
        if self.time:
            lone = x.shape[1] == 1 and self.double_lone_frame
            single, rest = (x[:, :0], x) if lone else split_odd(x)
            x = jnp.concatenate([single, jnp.repeat(rest, 2, axis=1)], axis=1)
        return self.conv(enlarge(x)), ()


class ShuffleDown(nnx.Module):
    """Convolution, then pixels (and frames, with `time`) move into channels.

    The shortcut averages the input's channels.

    The first frame has no partner: its pixels are moved in space only, and repeated. Source: HunyuanVideo-1.5's VAE,
    after the deep compression autoencoder, https://arxiv.org/abs/2410.10733.
    """

    def __init__(self, in_channels: int, out_channels: int, *, time: bool, style: Style, rngs: nnx.Rngs):
        self.time = time
        self.out_channels = out_channels
        self.conv = style.causal(in_channels, out_channels // (8 if time else 4), rngs=rngs)

    def __call__(self, x: jax.Array, cache: Cache, latents: jax.Array | None) -> tuple[jax.Array, Cache]:
        y, new = self.conv(x, cache)
        if not self.time:
            return self._moved(y, x, 1), new
        if cache is not None:
            return self._moved(y, x, 2), new
        first = to_channels(y[:, :1], 1)
        first = jnp.concatenate([first, first], axis=-1) + group_mean(to_channels(x[:, :1], 1), self.out_channels)
        return jnp.concatenate([first, self._moved(y[:, 1:], x[:, 1:], 2)], axis=1), new

    def _moved(self, y: jax.Array, x: jax.Array, frames: int) -> jax.Array:
        return to_channels(y, frames) + group_mean(to_channels(x, frames), self.out_channels)


class ShuffleUp(nnx.Module):
    """Inverse of `ShuffleDown`: channels move into pixels (and frames, with `time`); the shortcut repeats channels.

    The first frame stays one frame: it takes the first half of its channels. Source: as for `ShuffleDown`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, time: bool, style: Style, rngs: nnx.Rngs):
        self.time = time
        self.out_channels = out_channels
        self.conv = style.causal(in_channels, out_channels * (8 if time else 4), rngs=rngs)

    def __call__(self, x: jax.Array, cache: Cache, latents: jax.Array | None) -> tuple[jax.Array, Cache]:
        y, new = self.conv(x, cache)
        if not self.time:
            # Repeated before the move. Over time it is repeated after it, which gives another order of channels.
            return to_pixels(y, 1) + to_pixels(repeated(x, y.shape[-1]), 1), new
        if cache is not None:
            return self._moved(y, x), new
        first = to_pixels(y[:, :1], 1)[..., : self.out_channels]
        first = first + repeated(to_pixels(x[:, :1], 1), self.out_channels)
        return jnp.concatenate([first, self._moved(y[:, 1:], x[:, 1:])], axis=1), new

    def _moved(self, y: jax.Array, x: jax.Array) -> jax.Array:
        return to_pixels(y, 2) + repeated(to_pixels(x, 2), self.out_channels)


def _strided(in_channels: int, out_channels: int, *, style: Style, rngs: nnx.Rngs) -> Any:
    return style.conv(in_channels, out_channels, (3, 3), strides=(2, 2), padding=(0, 1), rngs=rngs)


def enlarge(x: jax.Array, factor: int = 2) -> jax.Array:
    """Enlarge frames by nearest neighbors: [B, F, H, W, C] -> [B, F, factor H, factor W, C]."""
    return jnp.repeat(jnp.repeat(x, factor, axis=2), factor, axis=3)


def split_odd(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split frames into the first and the others if their number is odd, else into none and all."""
    single = x.shape[1] % 2
    return x[:, :single], x[:, single:]


def repeated(x: jax.Array, channels: int) -> jax.Array:
    """Repeat every channel channels / C times in a row: [..., C] -> [..., channels]."""
    return jnp.repeat(x, channels // x.shape[-1], axis=-1)


def to_channels(x: jax.Array, frames: int) -> jax.Array:
    """Move frames, rows and columns into channels: [B, F, H, W, C] -> [B, F/frames, H/2, W/2, frames*4*C].

    The channels are ordered (frame, row, column, channel).
    """
    return einops.rearrange(x, "b (f t) (h p) (w q) c -> b f h w (t p q c)", t=frames, p=2, q=2)


def to_pixels(x: jax.Array, frames: int) -> jax.Array:
    """Move channels into frames, rows and columns, the inverse of `to_channels`."""
    return einops.rearrange(x, "b f h w (t p q c) -> b (f t) (h p) (w q) c", t=frames, p=2, q=2)
