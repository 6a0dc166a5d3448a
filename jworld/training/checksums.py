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


def _both(one: tuple[jax.Array, jax.Array], other: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    return one[0] + other[0], one[1] & other[1]


def sum_and_finite(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute a checksum, and whether no element is NaN or infinite, in one pass without temporaries.

    The checksum is a uint32 scalar: the words weighted by odd numbers that depend on their position, summed modulo
    2^32. Integer sums are exact in every order, so every mesh gives the same number. A weight is odd, so a change of
    one word changes the sum; the weights differ, so exchanged words do too.

    XLA splits the reduction of one array on CPUs into steps that write out their input, 4 bytes per element. It leaves
    that of a pair as it is.
    """
    words = _words(x)
    position = jnp.zeros((), jnp.uint32)
    for axis, size in enumerate(words.shape):
        position = position * jnp.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    # Multiply and shift: neighbors get unrelated weights (Knuth's and Murmur's constants).
    weight = position * jnp.uint32(2654435761)
    weight = (weight ^ (weight >> 15)) * jnp.uint32(2246822519)
    finite = jnp.broadcast_to(jnp.isfinite(x).reshape(*x.shape, *[1] * (words.ndim - x.ndim)), words.shape)
    total, all_finite = jax.lax.reduce(
        (words * (weight | 1), finite),
        (np.uint32(0), np.bool_(True)),
        _both,
        tuple(range(words.ndim)),
    )
    return total, all_finite


def part_checksum(part: np.ndarray, first: int) -> int:
    """Compute the share of the checksum of `sum_and_finite` of elements that follow each other, on the host.

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


_sums_and_finite = jax.jit(lambda leaves: [sum_and_finite(x) for x in leaves])


def describe(tree: Any) -> dict[str, dict[str, Any]]:
    """Map leaf names to {"dtype", "shape"}, for arrays or ShapeDtypeStructs."""
    return {
        state.leaf_name(path): {"dtype": str(np.dtype(leaf.dtype)), "shape": list(leaf.shape)}
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def tree_checksums(tree: Any) -> dict[str, dict[str, Any]]:
    """Map leaf names to {"dtype", "shape", "checksum"}, JSON values; waits for the arrays."""
    entries = describe(tree)
    sums = jax.device_get(_sums_and_finite(jax.tree.leaves(tree)))
    return {
        name: entry | {"checksum": int(sum_)} for (name, entry), (sum_, _) in zip(entries.items(), sums, strict=True)
    }


def find_not_finite(tree: Any) -> str:
    """Return the name of the first leaf with NaN or infinite values, "" without; waits for the arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found = jax.device_get(_sums_and_finite([leaf for _, leaf in leaves]))
    return next(
        (state.leaf_name(path) for (path, _), (_, is_finite) in zip(leaves, found, strict=True) if not is_finite), ""
    )
