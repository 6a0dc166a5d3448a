"""Rotary position embedding over several axes of a video."""

from collections.abc import Sequence

import einops
import jax
import jax.numpy as jnp


def rotary_tables(
    positions: Sequence[jax.Array], dims: Sequence[int], theta: float | Sequence[float]
) -> tuple[jax.Array, jax.Array]:
    """Compute cosines and sines for a grid of tokens.

    Axis a uses `dims[a]` consecutive channels of a head; its pair j rotates by theta^(-2j/dims[a]) per position.

    Args:
      positions: one [L_a] array per axis.
      dims: even channel counts per axis; they sum to the head size K.
      theta: base of the frequencies, of all axes or of each.

    Returns:
      cos, sin: [L_0, ..., L_n, K/2] float32, one angle per channel pair.
    """
    bases = [theta] * len(dims) if isinstance(theta, int | float) else theta
    angles = []
    shape = tuple(len(p) for p in positions)
    for axis, (position, dim, base) in enumerate(zip(positions, dims, bases, strict=True)):
        frequencies = base ** (-jnp.arange(0, dim, 2, dtype=jnp.float32) / dim)
        angle = position.astype(jnp.float32)[:, None] * frequencies
        angle = angle.reshape([-1 if a == axis else 1 for a in range(len(shape))] + [dim // 2])
        angles.append(jnp.broadcast_to(angle, (*shape, dim // 2)))
    table = jnp.concatenate(angles, axis=-1)
    return jnp.cos(table), jnp.sin(table)


def rotate_interleaved(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the channel pairs (0, 1), (2, 3), ... of every head.

    Args:
      x: [..., N, K] queries or keys.
      cos: [..., K/2] float32; broadcasts against x without its head axis.
      sin: like cos.

    Returns:
      Like x, computed in float32.
    """
    pairs = einops.rearrange(x.astype(jnp.float32), "... (k pair) -> ... k pair", pair=2)
    even, odd = pairs[..., 0], pairs[..., 1]
    cos, sin = cos[..., None, :], sin[..., None, :]
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1)
    return einops.rearrange(turned, "... k pair -> ... (k pair)").astype(x.dtype)


def rotate_halves(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the channel pairs (0, K/2), (1, K/2 + 1), ... of every head; arguments as in `rotate_interleaved`."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def extrapolated_theta(ratio: float, dim: int, theta: float = 10_000.0) -> float:
    """Return the base that stretches the slowest pair of `dim` channels over `ratio` times as many positions.

    Source: NTK-aware scaling, as in YaRN, https://arxiv.org/abs/2309.00071, section 3.1.
    """
    stretch: float = ratio ** (dim / (dim - 2))
    return theta * stretch
