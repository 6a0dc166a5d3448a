"""Structured attention masks against a dense one: values, gradients, memory, and a mesh."""

import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jworld.models.layers.attention import ChunkCausal, attention
from jworld.parallel import axes, mesh

TOLERANCE = 1e-5
Arrays = tuple[jax.Array, ...]


def make_qkv(*, batch: int = 2, length: int = 12, prefix: int = 3, heads: int = 2, head_dim: int = 4) -> Arrays:
    keys = jax.random.split(jax.random.key(0), 3)
    lengths = (length, prefix + length, prefix + length)
    return tuple(
        jax.random.normal(key, (batch, size, heads, head_dim)) for key, size in zip(keys, lengths, strict=True)
    )


def make_key_mask(keys: int, prefix: int) -> jax.Array:
    """[2, keys] bool: the second row hides a key of the prefix and two of the rest."""
    mask = np.ones((2, keys), bool)
    mask[1, [min(1, prefix), prefix + 2, prefix + 7]] = False
    return jnp.asarray(mask)


def dense(q: jax.Array, k: jax.Array, v: jax.Array, mask: ChunkCausal, key_mask: jax.Array | None) -> jax.Array:
    """The definition, with the whole matrix of queries and keys."""
    query_chunk = np.arange(q.shape[1]) // mask.chunk
    key_chunk = (np.arange(k.shape[1]) - mask.prefix) // mask.chunk
    visible = jnp.asarray(query_chunk[:, None] >= np.where(np.arange(k.shape[1]) < mask.prefix, -1, key_chunk))
    visible = visible[None, None]
    if key_mask is not None:
        visible = visible & key_mask[:, None, None, :]
    logits = jnp.einsum("bqnk,bsnk->bnqs", q, k) / np.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(visible, logits, -jnp.inf), axis=-1)
    return jnp.einsum("bnqs,bsnk->bqnk", weights, v)


def values_and_gradients(function: Callable[..., jax.Array], qkv: Arrays) -> Arrays:
    """The output and the gradients of a fixed random projection of it."""
    cotangent = jax.random.normal(jax.random.key(1), qkv[0].shape)

    def both(*qkv: jax.Array) -> Arrays:
        out, pull = jax.vjp(function, *qkv)
        return out, *pull(cotangent)

    return jax.jit(both)(*qkv)


def assert_close(actual: Arrays, expected: Arrays) -> None:
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("chunk", [2, 4, 12])
def test_chunk_causal_is_the_dense_mask(chunk: int, prefix: int, masked: bool) -> None:
    qkv = make_qkv(prefix=prefix)
    mask = ChunkCausal(chunk, prefix)
    key_mask = make_key_mask(prefix + 12, prefix) if masked else None
    actual = values_and_gradients(lambda q, k, v: attention(q, k, v, mask=mask, key_mask=key_mask), qkv)
    assert_close(actual, values_and_gradients(lambda q, k, v: dense(q, k, v, mask, key_mask), qkv))


def test_a_later_chunk_has_no_influence() -> None:
    q, k, v = make_qkv()
    mask = ChunkCausal(chunk=4, prefix=3)
    out = attention(q, k, v, mask=mask)
    changed = attention(q.at[:, 8:].add(1), k.at[:, 11:].add(1), v.at[:, 11:].add(1), mask=mask)
    np.testing.assert_array_equal(out[:, :8], changed[:, :8])
    assert not np.allclose(out[:, 8:], changed[:, 8:])


@pytest.mark.parametrize("mask", [None, ChunkCausal(chunk=4, prefix=3)])
def test_padded_keys_have_no_influence(mask: ChunkCausal | None) -> None:
    q, k, v = make_qkv()
    key_mask = make_key_mask(15, 3)
    padding = ~key_mask[:, :, None, None]
    out, _, dk, dv = values_and_gradients(lambda *qkv: attention(*qkv, mask=mask, key_mask=key_mask), (q, k, v))
    changed = attention(q, k + 1e3 * padding, v + 1e3 * padding, mask=mask, key_mask=key_mask)
    np.testing.assert_allclose(out, changed, atol=TOLERANCE)
    for gradient in (dk, dv):
        assert not np.any(gradient * padding)
    unmasked = attention(q, k, v, mask=mask)
    assert not np.allclose(out[1], unmasked[1], atol=1e-3)


@pytest.mark.parametrize("lengths", [(12, 16), (12, 12), (10, 13)])
def test_lengths_that_do_not_fit_are_refused(lengths: tuple[int, int]) -> None:
    queries, keys = (jnp.ones((1, length, 1, 4)) for length in lengths)
    with pytest.raises(ValueError, match=rf"{lengths[0]} queries in chunks of 4 need 3 \+ .* got {lengths[1]} keys"):
        attention(queries, keys, keys, mask=ChunkCausal(chunk=4, prefix=3))


def largest_intermediate(function: Callable[..., jax.Array], qkv: Arrays) -> int:
    """Elements of the largest array in the compiled forward and backward pass."""

    def total(*qkv: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(function(*qkv)))

    text = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*qkv).compile().as_text()
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in re.findall(r"\[([\d,]+)\]", text))


def test_nothing_holds_all_queries_by_all_keys() -> None:
    qkv = make_qkv(batch=1, length=512, prefix=8, heads=1)
    mask = ChunkCausal(chunk=64, prefix=8)
    all_pairs = 512 * 520
    assert largest_intermediate(lambda q, k, v: dense(q, k, v, mask, None), qkv) >= all_pairs
    assert largest_intermediate(lambda q, k, v: attention(q, k, v, mask=mask), qkv) <= all_pairs // 8


def test_sequence_sharding_changes_nothing() -> None:
    """Heads are scattered and tokens gathered; an odd prefix shows that keys need not divide."""
    batch, length, prefix = 4, 12, 3
    q, k, v = make_qkv(batch=batch, length=length, prefix=prefix)
    mask = ChunkCausal(chunk=4, prefix=prefix)
    key_mask = jnp.ones((batch, prefix + length), bool).at[1, 1].set(False)

    def function(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attention(q, k, v, mask=mask, key_mask=key_mask)

    expected = values_and_gradients(function, (q, k, v))
    devices = mesh.make_mesh(data=2, fsdp=2, sequence=2)
    whole, split = (axes.sharding(devices, ("batch", name, None, None)) for name in (None, "sequence"))
    with jax.set_mesh(devices):
        placed = (jax.device_put(q, split), jax.device_put(k, whole), jax.device_put(v, whole))
        actual = values_and_gradients(function, placed)
        text = jax.jit(function).lower(*placed).compile().as_text()
    assert_close(actual, expected)
    assert actual[0].sharding.is_equivalent_to(split, ndim=4)
    # Every device computes the logits of its one sample and its one head, whole in length.
    assert f"f32[1,1,4,{prefix + 4}]" in text or f"f32[1,4,{prefix + 4}]" in text
    assert f"[1,2,4,{prefix + 4}]" not in text
