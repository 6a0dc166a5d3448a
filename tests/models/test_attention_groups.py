"""Query heads that share a key head, and intervals that depend on the data, compared with a dense mask."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jworld.models.layers.attention import Causal, Intervals, SlidingWindow, attention, splash, xla
from jworld.parallel import mesh

Arrays = tuple[jax.Array, ...]


def make_qkv(heads: int, key_heads: int, length: int = 48) -> Arrays:
    keys = jax.random.split(jax.random.key(0), 3)
    counts = (heads, key_heads, key_heads)
    return tuple(jax.random.normal(key, (2, length, n, 8)) for key, n in zip(keys, counts, strict=True))


def dense(q: jax.Array, k: jax.Array, v: jax.Array, visible: np.ndarray) -> jax.Array:
    """Compute attention by definition, head by head; visible [B, L, L]."""
    group = q.shape[2] // k.shape[2]
    outputs = []
    for head in range(q.shape[2]):
        logits = jnp.einsum("bqk,bsk->bqs", q[:, :, head], k[:, :, head // group]) / np.sqrt(q.shape[-1])
        weights = jax.nn.softmax(jnp.where(visible, logits, -jnp.inf), axis=-1)
        outputs.append(jnp.einsum("bqs,bsk->bqk", weights, v[:, :, head // group]))
    return jnp.stack(outputs, axis=2)


def assert_same(actual: Callable[..., jax.Array], expected: Callable[..., jax.Array], qkv: Arrays) -> None:
    """Compare values, and gradients of a fixed random projection of them."""
    weights = jax.random.normal(jax.random.key(1), qkv[0].shape)

    def both(function: Callable[..., jax.Array]) -> Arrays:
        def run(*qkv: jax.Array) -> Arrays:
            out, pull = jax.vjp(function, *qkv)
            return out, *pull(weights)

        return jax.jit(run)(*qkv)

    for a, b in zip(both(actual), both(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=0)


def band(length: int, left: int) -> np.ndarray:
    q, k = np.arange(length)[:, None], np.arange(length)
    return np.broadcast_to((k <= q) & (q - left <= k), (2, length, length))


@pytest.mark.parametrize("backend", ["xla", "parts", "splash"])
def test_query_heads_share_key_heads(backend: str) -> None:
    length = 144 if backend == "splash" else 48
    mask = SlidingWindow(left=7)
    function = {
        "xla": functools.partial(attention, mask=mask),
        "parts": functools.partial(xla.attention, mask=mask, key_mask=None, max_logits=4 * 7 * 48),
        "splash": functools.partial(
            splash.attention,
            mask=mask,
            key_mask=jnp.ones((2, length), bool),
            blocks=splash.Blocks(128, 128, 128),
            interpret=True,
        ),
    }[backend]
    assert_same(function, functools.partial(dense, visible=band(length, 7)), make_qkv(4, 2, length))


@pytest.mark.parametrize(("heads", "sequence"), [(4, 4), (6, 4)])
def test_shared_key_heads_on_a_mesh(heads: int, sequence: int) -> None:
    """Some key heads have to be repeated for the devices; others run in rings."""
    qkv = make_qkv(heads, 2)
    with jax.set_mesh(mesh.make_mesh(fsdp=8 // sequence, sequence=sequence)):
        placed = tuple(jnp.concatenate([x] * 4) for x in qkv)
        actual = jax.jit(functools.partial(attention, mask=Causal()))(*placed)
    np.testing.assert_allclose(actual[:2], dense(*qkv, visible=band(48, 48)), atol=2e-5, rtol=0)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="4 query heads are not a multiple of 3 key heads"):
        attention(*make_qkv(4, 3))


def make_intervals(length: int, window: int, longest: int) -> tuple[np.ndarray, Intervals]:
    """Make a mask [2, L, L] bool and its intervals: causal within a window, and bidirectional in runs of images."""
    here, random = np.arange(length), np.random.default_rng(0)
    starts, stops = (np.tile(x, (2, 1)) for x in (np.maximum(here + 1 - window, 0), here + 1))
    for row in range(2):
        for first in random.choice(length // longest - 1, 3, replace=False) * longest + 3:
            run = slice(first, first + longest - 3)
            starts[row, run] = np.minimum(starts[row, run], first)
            stops[row, run] = run.stop
    visible = (here >= starts[..., None]) & (here < stops[..., None])
    within = SlidingWindow(left=max(window, longest), right=longest)
    return visible, Intervals(jnp.asarray(starts, jnp.int32), jnp.asarray(stops, jnp.int32), within)


@pytest.mark.parametrize("window", [30, 450])
@pytest.mark.parametrize("where", ["whole", "parts", "splash"])
def test_intervals_of_the_data(where: str, window: int) -> None:
    """Windows are narrower than a run of images, or as wide as the sequence; the first row ends with padding."""
    length = 450
    visible, mask = make_intervals(length, window, 40)
    key_mask = jnp.ones((2, length), bool).at[0, -20:].set(False)
    functions = {
        "whole": xla.attention,
        "parts": functools.partial(xla.attention, max_logits=4 * 7 * length),
        "splash": functools.partial(splash.attention, blocks=splash.Blocks(128, 128, 128), interpret=True),
    }
    actual = functools.partial(functions[where], mask=mask, key_mask=key_mask)
    assert_same(
        actual, functools.partial(dense, visible=visible & np.asarray(key_mask)[:, None]), make_qkv(4, 2, length)
    )


@pytest.mark.parametrize("where", ["whole", "parts", "splash", "mesh"])
def test_intervals_of_any_kind(where: str) -> None:
    """The intervals have no order and no static bounds."""
    qkv, length = make_qkv(4, 2), 48
    random, here = np.random.default_rng(0), np.arange(length)
    stops = random.integers(1, length + 1, (2, length))
    starts = (stops * random.random((2, length))).astype(int)
    expected = functools.partial(dense, visible=(here >= starts[..., None]) & (here < stops[..., None]))
    mask = Intervals(jnp.asarray(starts, jnp.int32), jnp.asarray(stops, jnp.int32))
    if where == "mesh":
        with jax.set_mesh(mesh.make_mesh(fsdp=2, sequence=4)):
            actual = jax.jit(functools.partial(attention, mask=mask))(*qkv)
        np.testing.assert_allclose(actual, expected(*qkv), atol=2e-5, rtol=0)
        return
    functions = {
        "whole": xla.attention,
        "parts": functools.partial(xla.attention, max_logits=4 * 7 * length),
        "splash": functools.partial(splash.attention, interpret=True),
    }
    assert_same(functools.partial(functions[where], mask=mask, key_mask=None), expected, qkv)


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 2), (6, 3)])
def test_intervals_on_a_mesh(heads: int, key_heads: int) -> None:
    """Some heads can be split over the devices, others cannot."""
    visible, mask = make_intervals(48, 6, 10)
    qkv = make_qkv(heads, key_heads)
    with jax.set_mesh(mesh.make_mesh(fsdp=2, sequence=4)):
        actual = jax.jit(functools.partial(attention, mask=mask))(*qkv)
    np.testing.assert_allclose(actual, dense(*qkv, visible=visible), atol=2e-5, rtol=0)


def test_only_blocks_within_the_static_bounds_are_computed() -> None:
    _, mask = make_intervals(2048, 200, 56)
    qkv = make_qkv(4, 2, 2048)

    def products(mask: Intervals) -> float:
        call = jax.jit(functools.partial(xla.attention, mask=mask, key_mask=None, max_logits=2**40))
        return call.lower(*qkv).compile().cost_analysis()["flops"]

    # Each block of 256 rows needs 256 + 200 + 56 keys.
    assert products(mask) < 0.3 * products(dataclasses.replace(mask, within=None))
