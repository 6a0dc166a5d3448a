"""Array checksums that do not depend on the sharding over devices."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jworld.training import state

_BLOCK = 1 << 16
WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def _words(x: jax.Array) -> jax.Array:
    """Return the bits of every element as uint32; elements of 8 bytes become two along a new last axis."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(x, WORDS[min(x.dtype.itemsize, 4)]).astype(jnp.uint32)


def array_checksum(x: jax.Array) -> jax.Array:
    """Compute a uint32 scalar: the words weighted by odd numbers that depend on their position, summed modulo 2^32.

    Integer sums are exact in every order, so every mesh gives the same number. A weight is odd, so a change of one word
    changes the sum; the weights differ, so exchanged words do too.
    """
    words = _words(x)
    position = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(words.shape):
        position = position * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    # Multiply and shift: neighbors get unrelated weights (Knuth's and Murmur's constants).
    weight = position * jnp.uint32(2654435761)
    weight = (weight ^ (weight >> 15)) * jnp.uint32(2246822519)
    return jnp.sum(words * (weight | 1), dtype=jnp.uint32)


def part_checksum(part: np.ndarray, first: int) -> int:
    """Compute the share of `array_checksum` of elements that follow each other, on the host.

    Args:
      part: the elements, in the order of the array.
      first: number of the first one in the array.
    """
    size = min(part.dtype.itemsize, 4)
    words = np.ascontiguousarray(part).reshape(-1).view(f"u{size}")
    first *= part.dtype.itemsize // size
    total = 0
    for start in range(0, words.size, _BLOCK):
        block = words[start : start + _BLOCK].astype(np.uint32)
        weight = np.arange(block.size, dtype=np.uint32) + np.uint32((first + start) % 2**32)
        weight *= np.uint32(2654435761)
        weight ^= weight >> np.uint32(15)
        weight *= np.uint32(2246822519)
        weight |= np.uint32(1)
        weight *= block
        total += int(weight.sum(dtype=np.uint32))
    return total % 2**32


_finite = jax.jit(lambda x: jnp.isfinite(x).all())
_tree_checksums = jax.jit(lambda leaves: [array_checksum(x) for x in leaves])


def describe(tree: Any) -> dict[str, dict[str, Any]]:
    """Map leaf names to {"dtype", "shape"}, for arrays or ShapeDtypeStructs."""
    return {
        state.leaf_name(path): {"dtype": str(np.dtype(leaf.dtype)), "shape": list(leaf.shape)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def tree_checksums(tree: Any) -> dict[str, dict[str, Any]]:
    """Map leaf names to {"dtype", "shape", "checksum"}, JSON values; waits for the arrays."""
    entries = describe(tree)
    sums = jax.device_get(_tree_checksums(jax.tree.leaves(tree)))
    return {name: entry | {"checksum": int(sum_)} for (name, entry), sum_ in zip(entries.items(), sums, strict=True)}


def find_not_finite(tree: Any) -> str:
    """Return the name of the first leaf with NaN or infinite values, "" without; waits for the arrays."""
    # One after another: on CPUs a leaf's check has a byte per element.
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return next((state.leaf_name(path) for path, leaf in leaves if not bool(_finite(leaf))), "")
