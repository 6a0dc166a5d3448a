"""Layers between two resolutions of a video: learned, averaged, and by moving pixels into channels."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.autoencoders.blocks import Cache, Style, group_mean


class LearnedDown(nnx.Module):
    """Half the height and width by a strided convolution and, where `time`, half the frames after the first likewise.

    The first frame passes; frame k > 0 of the result sees frames 2k - 2, 2k - 1 and 2k. Source: the Wan 2.1 VAE.
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
    """Twice the height and width by nearest neighbours and a convolution; where `time`, two frames of one before that.

    The first frame passes, and the frames after it do not see it. Source: the Wan 2.1 VAE.
    """

    def __init__(self, in_channels: int, out_channels: int, *, time: bool, style: Style, rngs: nnx.Rngs):
        self.time_conv = style.causal(in_channels, 2 * in_channels, kernel=(3, 1, 1), rngs=rngs) if time else None
        self.conv = style.conv(in_channels, out_channels, (3, 3), rngs=rngs)

    def __call__(self, x: jax.Array, cache: Cache, latents: jax.Array | None) -> tuple[jax.Array, Cache]:
        if self.time_conv is None:
            return self.conv(enlarge(x)), ()
        passed = 1 if cache is None else 0
        y, cache = self.time_conv(x[:, passed:], cache)
        y = jnp.stack(jnp.split(y, 2, axis=-1), axis=2).reshape(x.shape[0], 2 * y.shape[1], *x.shape[2:])
        return self.conv(enlarge(jnp.concatenate([x[:, :passed], y], axis=1))), cache


class AverageDown(nnx.Module):
    """Half the height and width by a strided convolution; where `time`, pairs of frames are averaged before that.

    Of an odd number of frames the first stays alone. Source: the CogVideoX VAE.
    """

    def __init__(self, channels: int, *, time: bool, style: Style, rngs: nnx.Rngs):
        self.time = time
        self.conv = _strided(channels, channels, style=style, rngs=rngs)

    def __call__(self, x: jax.Array, cache: Cache, latents: jax.Array | None) -> tuple[jax.Array, Cache]:
        if self.time:
            single, pairs = split_odd(x)
            means = jnp.mean(pairs.reshape(x.shape[0], pairs.shape[1] // 2, 2, *x.shape[2:]), axis=2)
            x = jnp.concatenate([single, means], axis=1)
        return self.conv(x), ()


class NearestUp(nnx.Module):
    """Twice the height and width and, where `time`, the frames, by nearest neighbours, then a convolution per frame.

    Of an odd number of frames the first stays alone, and so does a lone frame unless `double_lone_frame`.
    Source: the CogVideoX VAE; The Matrix doubles lone frames from its third stage on.
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
    """Pixels (and frames, where `time`) move into channels after a convolution; the input's, averaged, are added.

    The first frame has no partner: its channels are moved in space only, twice. Source: HunyuanVideo-1.5's VAE, after
    the deep compression autoencoder, https://arxiv.org/abs/2410.10733.
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
    """The inverse: channels move into pixels (and frames, where `time`); the input's, repeated, are added.

    The first frame stays one frame: it takes the first half of its channels. Source: as `ShuffleDown`.
    """

    def __init__(self, in_channels: int, out_channels: int, *, time: bool, style: Style, rngs: nnx.Rngs):
        self.time = time
        self.out_channels = out_channels
        self.conv = style.causal(in_channels, out_channels * (8 if time else 4), rngs=rngs)

    def __call__(self, x: jax.Array, cache: Cache, latents: jax.Array | None) -> tuple[jax.Array, Cache]:
        y, new = self.conv(x, cache)
        if not self.time:
            # Repeated before the move; over time it is the other way round, which is another order of channels.
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
    """[B, F, H, W, C] -> [B, F, factor H, factor W, C], nearest neighbours."""
    return jnp.repeat(jnp.repeat(x, factor, axis=2), factor, axis=3)


def split_odd(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An odd number of frames -> the first and the others, an even number -> none and all."""
    single = x.shape[1] % 2
    return x[:, :single], x[:, single:]


def repeated(x: jax.Array, channels: int) -> jax.Array:
    """[..., C] -> [..., channels]: every channel channels / C times in a row."""
    return jnp.repeat(x, channels // x.shape[-1], axis=-1)


def to_channels(x: jax.Array, frames: int) -> jax.Array:
    """[B, F, H, W, C] -> [B, F/frames, H/2, W/2, frames*4*C]: channel = ((t * 2 + h) * 2 + w) * C + c."""
    B, F, H, W, C = x.shape
    x = x.reshape(B, F // frames, frames, H // 2, 2, W // 2, 2, C)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, F // frames, H // 2, W // 2, frames * 4 * C)


def to_pixels(x: jax.Array, frames: int) -> jax.Array:
    """The inverse of `to_channels`."""
    B, F, H, W, C = x.shape
    channels = C // (frames * 4)
    x = x.reshape(B, F, H, W, frames, 2, 2, channels)
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(B, F * frames, H * 2, W * 2, channels)
