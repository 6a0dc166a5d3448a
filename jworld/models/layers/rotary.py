"""Rotary positions over several axes of a video."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def rotary_tables(positions: Sequence[jax.Array], dims: Sequence[int], theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines for a grid of tokens.

    Axis a owns `dims[a]` consecutive channels of a head; its pair j turns by theta^(-2j/dims[a]) per position.

    Args:
      positions: one [L_a] array per axis.
      dims: even channel counts per axis; they sum to the head size K.
      theta: base of the frequencies.

    Returns:
      cos, sin: [L_0, ..., L_n, K/2] float32, one angle per channel pair.
    """
    angles = []
    shape = tuple(len(p) for p in positions)
    for axis, (position, dim) in enumerate(zip(positions, dims, strict=True)):
        frequencies = theta ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
        angle = position.astype(jnp.float32)[:, None] * frequencies
        angle = angle.reshape([-1 if a == axis else 1 for a in range(len(shape))] + [dim // 2])
        angles.append(jnp.broadcast_to(angle, (*shape, dim // 2)))
    table = jnp.concatenate(angles, axis=-1)
    return jnp.cos(table), jnp.sin(table)


def rotate_interleaved(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turn the channel pairs (0, 1), (2, 3), ... of every head.

    Args:
      x: [..., N, K] queries or keys.
      cos: [..., K/2] float32; broadcasts against x without its head axis.
      sin: like cos.

    Returns:
      Like x, computed in float32.
    """
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[..., None, :], sin[..., None, :]
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)
