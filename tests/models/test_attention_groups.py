"""Heads of queries that share a head of keys, and intervals that the data decide, against a dense mask."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jworld.models.layers.attention import Causal, Intervals, SlidingWindow, attention, splash, xla
from jworld.parallel import mesh

FAST_COMPILE = {"xla_backend_optimization_level": 0}
Arrays = tuple[jax.Array, ...]


def make_qkv(heads: int, key_heads: int, length: int = 48) -> Arrays:
    keys = jax.random.split(jax.random.key(0), 3)
    counts = (heads, key_heads, key_heads)
    return tuple(jax.random.normal(key, (2, length, n, 8)) for key, n in zip(keys, counts, strict=True))


def dense(q: jax.Array, k: jax.Array, v: jax.Array, seen: np.ndarray) -> jax.Array:
    """The definition, head by head; seen [B, L, L]."""
    group = q.shape[2] // k.shape[2]
    outputs = []
    for head in range(q.shape[2]):
        logits = jnp.einsum("bqk,bsk->bqs", q[:, :, head], k[:, :, head // group]) / np.sqrt(q.shape[-1])
        weights = jax.nn.softmax(jnp.where(seen, logits, -jnp.inf), axis=-1)
        outputs.append(jnp.einsum("bqs,bsk->bqk", weights, v[:, :, head // group]))
    return jnp.stack(outputs, axis=2)


def assert_same(actual: Callable[..., jax.Array], expected: Callable[..., jax.Array], qkv: Arrays) -> None:
    """Values, and gradients of a fixed random projection of them."""
    weights = jax.random.normal(jax.random.key(1), qkv[0].shape)

    def both(function: Callable[..., jax.Array]) -> Arrays:
        def run(*qkv: jax.Array) -> Arrays:
            out, pull = jax.vjp(function, *qkv)
            return out, *pull(weights)

        return jax.jit(run, compiler_options=FAST_COMPILE)(*qkv)

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
    assert_same(function, functools.partial(dense, seen=band(length, 7)), make_qkv(4, 2, length))


@pytest.mark.parametrize(("heads", "sequence"), [(4, 4), (6, 4)])
def test_shared_key_heads_on_a_mesh(heads: int, sequence: int) -> None:
    """Key heads that have to be repeated for the devices, and those of rings."""
    qkv = make_qkv(heads, 2)
    with jax.set_mesh(mesh.make_mesh(fsdp=8 // sequence, sequence=sequence)):
        placed = tuple(jnp.concatenate([x] * 4) for x in qkv)
        actual = jax.jit(functools.partial(attention, mask=Causal()))(*placed)
    np.testing.assert_allclose(actual[:2], dense(*qkv, seen=band(48, 48)), atol=2e-5, rtol=0)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="4 heads of queries are no multiple of 3 heads of keys"):
        attention(*make_qkv(4, 3))


@pytest.mark.parametrize("where", ["whole", "parts", "mesh"])
def test_intervals_of_the_data(where: str) -> None:
    qkv, length = make_qkv(4, 2), 48
    random = np.random.default_rng(0)
    stops = random.integers(1, length + 1, (2, length))
    starts = (stops * random.random((2, length))).astype(int)
    places = np.arange(length)
    expected = functools.partial(dense, seen=(places >= starts[..., None]) & (places < stops[..., None]))
    mask = Intervals(jnp.asarray(starts, jnp.int32), jnp.asarray(stops, jnp.int32))
    if where == "mesh":
        with jax.set_mesh(mesh.make_mesh(fsdp=2, sequence=4)):
            actual = jax.jit(functools.partial(attention, mask=mask))(*qkv)
        np.testing.assert_allclose(actual, expected(*qkv), atol=2e-5, rtol=0)
        return
    limit = 4 * 7 * length if where == "parts" else xla.MAX_LOGITS
    assert_same(functools.partial(xla.attention, mask=mask, key_mask=None, max_logits=limit), expected, qkv)
