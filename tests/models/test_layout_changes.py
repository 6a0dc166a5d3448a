"""Layout changes in einops patterns, against the same change written with reshape and transpose: equal to the bit."""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import einops
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jworld.data import images
from jworld.models.autoencoders import blocks, linear, samplers
from jworld.models.cosmos import config as cosmos_config
from jworld.models.cosmos import embeddings
from jworld.models.gemma3 import config as gemma3_config
from jworld.models.gemma3 import vision
from jworld.models.layers import causal_conv, patches, projections, rotary
from jworld.models.theworld import config as theworld_config
from jworld.models.theworld import model as theworld
from jworld.training import step

Change = Callable[[Any], Any]


@pytest.fixture(autouse=True)
def without_mesh() -> Iterator[None]:
    with nnx.use_eager_sharding(False):
        yield


def numbered(*shape: int) -> jax.Array:
    """Normal random numbers, all different: a transposed axis cannot go unseen."""
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def assert_same(new: Change, former: Change, *shape: int) -> None:
    """Both changes of one array have the same bits, as they stand and compiled."""
    x = numbered(*shape)
    for f, g in ((new, former), (jax.jit(new), jax.jit(former))):
        for found, expected in zip(jax.tree.leaves(f(x)), jax.tree.leaves(g(x)), strict=True):
            np.testing.assert_array_equal(found, expected, strict=True)


def former_to_patches(x: Any, ph: int = 2, pw: int = 3) -> Any:
    B, F, H, W, C = x.shape
    x = x.reshape(B, F, H // ph, ph, W // pw, pw, C).transpose(0, 1, 2, 4, 6, 3, 5)
    return x.reshape(B, F, (H // ph) * (W // pw), C * ph * pw)


def former_from_patches(x: Any, *, channels_first: bool, ph: int = 2, pw: int = 3, h: int = 3, w: int = 2) -> Any:
    B, F = x.shape[:2]
    if channels_first:
        x = x.reshape(B, F, h, w, -1, ph, pw).transpose(0, 1, 2, 5, 3, 6, 4)
    else:
        x = x.reshape(B, F, h, w, ph, pw, -1).transpose(0, 1, 2, 4, 3, 5, 6)
    return x.reshape(B, F, h * ph, w * pw, -1)


def test_patches() -> None:
    assert_same(lambda x: patches.to_patches(x, (2, 3)), former_to_patches, 2, 2, 6, 6, 5)
    for channels_first in (True, False):
        assert_same(
            lambda x, first=channels_first: patches.from_patches(x, (6, 6), (2, 3), channels_first=first),
            lambda x, first=channels_first: former_from_patches(x, channels_first=first),
            *(2, 2, 6, 30),
        )


def former_to_channels(x: Any, frames: int) -> Any:
    B, F, H, W, C = x.shape
    x = x.reshape(B, F // frames, frames, H // 2, 2, W // 2, 2, C)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(B, F // frames, H // 2, W // 2, frames * 4 * C)


def former_to_pixels(x: Any, frames: int) -> Any:
    B, F, H, W, C = x.shape
    x = x.reshape(B, F, H, W, frames, 2, 2, C // (frames * 4))
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(B, F * frames, H * 2, W * 2, C // (frames * 4))


@pytest.mark.parametrize("frames", [1, 2])
def test_pixels_and_channels(frames: int) -> None:
    # A video of one frame has none after the first: sizes of zero occur.
    for length in (0, 4):
        shape = (2, length, 6, 4)
        assert_same(lambda x: samplers.to_channels(x, frames), lambda x: former_to_channels(x, frames), *shape, 3)
        assert_same(lambda x: samplers.to_pixels(x, frames), lambda x: former_to_pixels(x, frames), *shape, 24)


def test_groups_of_channels() -> None:
    assert_same(
        lambda x: blocks.group_mean(x, 4), lambda x: jnp.mean(x.reshape(*x.shape[:-1], 4, 3), axis=-1), 2, 3, 2, 2, 12
    )


@pytest.mark.parametrize("frames", [1, 4, 5])
@pytest.mark.parametrize("starts", [True, False])
def test_resampling_in_time(frames: int, starts: bool) -> None:
    style = blocks.Style(past="zeros", border="zeros", norm=nnx.LayerNorm, dtype=jnp.float32, param_dtype=jnp.float32)
    up = samplers.LearnedUp(3, 2, time=True, style=style, rngs=nnx.Rngs(0))
    down = samplers.AverageDown(3, time=True, style=style, rngs=nnx.Rngs(0))
    assert up.time_conv is not None
    time_conv = up.time_conv
    cache = None if starts else jnp.ones((2, 2, 4, 4, 3))

    def former_up(x: Any) -> Any:
        passed = 1 if cache is None else 0
        y, kept = time_conv(x[:, passed:], cache)
        y = jnp.stack(jnp.split(y, 2, axis=-1), axis=2).reshape(x.shape[0], 2 * y.shape[1], *x.shape[2:])
        return up.conv(samplers.enlarge(jnp.concatenate([x[:, :passed], y], axis=1))), kept

    def former_down(x: Any) -> Any:
        single, pairs = samplers.split_odd(x)
        means = jnp.mean(pairs.reshape(x.shape[0], pairs.shape[1] // 2, 2, *x.shape[2:]), axis=2)
        return down.conv(jnp.concatenate([single, means], axis=1)), ()

    assert_same(lambda x: up(x, cache, None), former_up, 2, frames, 4, 4, 3)
    assert_same(lambda x: down(x, None, None), former_down, 2, frames, 4, 4, 3)


def former_linear_patches(video: Any, step: int = 4, ratio: int = 8) -> Any:
    *lead, frames, height, width, channels = video.shape
    axes = (frames // step, step, height // ratio, ratio, width // ratio, ratio, channels)
    n = len(lead)
    order = (*range(n), *(n + axis for axis in (0, 2, 4, 1, 3, 5, 6)))
    found = video.reshape(*lead, *axes).transpose(order)
    return found.reshape(*lead, frames // step, height // ratio, width // ratio, step * ratio * ratio * channels)


@pytest.mark.parametrize("lead", [(), (2,)])
def test_patches_of_the_linear_autoencoder(lead: tuple[int, ...]) -> None:
    shape = (*lead, 8, 16, 24, 3)
    assert_same(lambda x: linear._to_patches(x, 4, 8), former_linear_patches, *shape)
    assert_same(lambda x: linear._from_patches(linear._to_patches(x, 4, 8), 4, 8, 3), lambda x: x, *shape)
    # Fitted with numpy, run with JAX.
    video = np.asarray(numbered(*shape))
    found = linear._to_patches(video, 4, 8)
    assert isinstance(found, np.ndarray)
    np.testing.assert_array_equal(found, former_linear_patches(video))


def test_heads() -> None:
    layer = projections.Projections(12, 3, context_width=8, dtype=jnp.float32, rngs=nnx.Rngs(0))
    context = numbered(2, 5, 8)

    def former(x: Any) -> Any:
        q, k, v = (
            layer(tokens).reshape(*tokens.shape[:-1], 3, -1)
            for layer, tokens in ((layer.query, x), (layer.key, context), (layer.value, context))
        )
        return layer.query_norm(q), layer.key_norm(k), v

    assert_same(lambda x: layer.heads(x, context), former, 2, 3, 4, 12)


def test_rotated_pairs() -> None:
    cos, sin = rotary.rotary_tables((jnp.arange(5),), (6,), 100.0)

    def former(x: Any) -> Any:
        pairs = x.reshape(*x.shape[:-1], -1, 2)
        even, odd = pairs[..., 0], pairs[..., 1]
        a, b = cos[..., None, :], sin[..., None, :]
        return jnp.stack([even * a - odd * b, odd * a + even * b], axis=-1).reshape(x.shape)

    assert_same(lambda x: rotary.rotate_interleaved(x, cos, sin), former, 2, 5, 3, 6)


def test_frames_of_a_convolution() -> None:
    kernel = numbered(3, 3, 2, 4)

    def former(x: Any) -> Any:
        layout = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x.reshape(-1, *x.shape[2:]), kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=layout
        )
        return y.reshape(*x.shape[:2], *y.shape[1:])

    assert_same(lambda x: causal_conv._by_frame(x, kernel, (1, 1), [(1, 1), (1, 1)]), former, 2, 3, 4, 5, 2)


def test_windows_of_the_vision_pooling() -> None:
    cfg = gemma3_config.Gemma3Config(
        width=8, image_size=24, patch_size=2, image_tokens=9, vision_width=16, vision_heads=2, dtype=jnp.float32
    )
    layer = vision.Projector(cfg, rngs=nnx.Rngs(0))

    def former(x: Any) -> Any:
        grid = x.reshape(-1, 3, 4, 3, 4, x.shape[-1])
        return layer.linear(layer.norm(jnp.mean(grid, axis=(2, 4)).reshape(x.shape[0], 9, -1)))

    assert_same(layer, former, 2, 144, 16)


@pytest.mark.parametrize("layout", ["spatial", "channel"])
def test_world_tokens(layout: Literal["spatial", "channel"]) -> None:
    world = theworld_config.WorldConfig(layout=layout, image_size=16)
    cfg = theworld_config.TheWorldConfig(gemma=gemma3_config.Gemma3Config(width=8), world=world)
    layer = theworld.WorldProjector(cfg, rngs=nnx.Rngs(0))

    def former(x: Any) -> Any:
        places = x.reshape(*x.shape[:2], -1, x.shape[-1])
        return places if layout == "spatial" else jnp.swapaxes(places, 2, 3)

    assert_same(layer.tokens, former, 2, 3, 2, 4, 16)


def test_positions_of_cosmos() -> None:
    cfg = cosmos_config.CosmosConfig(width=24, num_heads=2, max_size=(4, 8, 8))
    layer = embeddings.PositionTables(cfg, rngs=nnx.Rngs(0))
    time, rows, columns = (table[:size] for table, size in ((layer.time, 2), (layer.height, 3), (layer.width, 4)))
    total = time[:, None, None] + rows[None, :, None] + columns[None, None, :]
    scale = jnp.sqrt(jnp.mean(jnp.square(total), axis=-1, keepdims=True)) + 1e-6
    np.testing.assert_array_equal(layer(2, 3, 4), (total / scale).reshape(2, 12, -1))


def test_microbatches() -> None:
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    assert_same(
        lambda x: step._microbatches({"x": x}, 3, {"x": sharding}),
        lambda x: {"x": x.reshape(2, 3, *x.shape[1:]).swapaxes(0, 1)},
        *(6, 4, 5),
    )


def test_thumbnails() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    pixels = image.astype(np.float32) / 127.5 - 1.0
    expected = pixels.reshape(3, 2, 4, 2, 3).transpose(0, 2, 1, 3, 4).reshape(12, 12)
    np.testing.assert_array_equal(images.thumbnail_tokens(image), expected, strict=True)


def test_copies_of_heads_and_views() -> None:
    """The gradient sums the copies."""

    def repeated(x: Any) -> Any:
        return einops.repeat(x, "b s n k -> b s (c n) k", c=3)

    def tiled(x: Any) -> Any:
        return jnp.tile(x, (1, 1, 3, 1))

    weights = numbered(2, 5, 12, 3)
    assert_same(repeated, tiled, 2, 5, 4, 3)
    assert_same(
        jax.grad(lambda x: jnp.sum(repeated(x) * weights)), jax.grad(lambda x: jnp.sum(tiled(x) * weights)), 2, 5, 4, 3
    )
    assert_same(
        lambda x: einops.repeat(x, "f h w k -> (v f) (h w) k", v=2),
        lambda x: jnp.tile(x, (2, 1, 1, 1)).reshape(6, 20, 3),
        *(3, 4, 5, 3),
    )
