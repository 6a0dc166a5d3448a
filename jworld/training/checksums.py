"""A checksum per array that does not depend on how the array is laid out over devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jworld.training import state

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def _words(x: jax.Array) -> jax.Array:
    """The bits of every element as uint32; elements of 8 bytes become two along a new last axis."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(x, WORDS[min(x.dtype.itemsize, 4)]).astype(jnp.uint32)


def array_checksum(x: jax.Array) -> jax.Array:
    """uint32 scalar: the words weighted by odd numbers that depend on their place, summed modulo 2^32.

    Integer sums are exact in every order, so every mesh gives the same number. A weight is odd, so a change of
    one word changes the sum; the weights differ, so exchanged words do too.
    """
    words = _words(x)
    place = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    # Multiply and shift: neighbours get unrelated weights (Knuth's and Murmur's constants).
    weight = place * jnp.uint32(2654435761)
    weight = (weight ^ (weight >> 15)) * jnp.uint32(2246822519)
    return jnp.sum(words * (weight | 1), dtype=jnp.uint32)


_tree_checksums = jax.jit(lambda leaves: [array_checksum(x) for x in leaves])


def describe(tree: Any) -> dict[str, dict[str, Any]]:
    """Leaf name -> {"dtype", "shape"} of arrays or of their abstract descriptions."""
    return {
        state.leaf_name(path): {"dtype": str(np.dtype(leaf.dtype)), "shape": list(leaf.shape)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def tree_checksums(tree: Any) -> dict[str, dict[str, Any]]:
    """Leaf name -> {"dtype", "shape", "checksum"}, JSON values; waits for the arrays."""
    entries = describe(tree)
    sums = jax.device_get(_tree_checksums(jax.tree.leaves(tree)))
    return {name: entry | {"checksum": int(sum_)} for (name, entry), sum_ in zip(entries.items(), sums, strict=True)}
