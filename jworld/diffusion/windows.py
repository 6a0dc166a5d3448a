"""Sliding windows of noise: groups of frames whose noise grows with their distance from the present (Swin-DPM).

A window is one clean frame and G groups of `size` frames; group g lies at times of its own part [g, g + 1) * 1000 / G.
When all groups have walked through their part, group g stands where group g - 1 began: the first is emitted, and
pure noise enters at the end. Source: The Matrix (arXiv 2412.03568), `stage3/cogvideox/`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jworld.diffusion.v_prediction import NUM_TIMESTEPS


def frames(groups: int, size: int) -> int:
    """Frames of a window, the clean one included."""
    return 1 + groups * size


def timestep_rows(timesteps: np.ndarray, groups: int, size: int) -> np.ndarray:
    """The times of a window's frames, step by step: [steps / groups, frames] int32 of a sampler's [steps] times.

    Raises:
      ValueError: the steps are no multiple of the groups.
    """
    if len(timesteps) % groups:
        raise ValueError(f"{len(timesteps)} sampling steps are no multiple of {groups} noise groups")
    parts = np.sort(timesteps).reshape(groups, -1)[:, ::-1]
    rows = np.repeat(parts.T, size, axis=1)
    return np.concatenate([np.zeros((len(rows), 1), np.int32), rows.astype(np.int32)], axis=1)


def sample_timesteps(
    key: jax.Array, batch: int, groups: int, size: int, *, phases_per_group: int = 1, lowest: int = 0
) -> jax.Array:
    """[batch, frames] int32 training times: one draw per sample, the same place in the part of every group.

    Args:
      phases_per_group: parts that a group's range is cut into; one of them is drawn per sample.
      lowest: first place of a part that may be drawn.
    """
    span = NUM_TIMESTEPS // (groups * phases_per_group)
    place_key, phase_key = jax.random.split(key)
    place = jax.random.randint(place_key, (batch, 1), lowest, span)
    phase = jax.random.randint(phase_key, (batch, 1), 0, phases_per_group)
    times = place + (jnp.arange(groups) * phases_per_group + phase) * span
    return jnp.pad(jnp.repeat(times, size, axis=1), ((0, 0), (1, 0)))


def advance(window: jax.Array, noise: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """[B, frames, ...] -> the emitted frames [B, size, ...], and the window that begins with the last of them."""
    emitted = window[:, 1 : 1 + size]
    return emitted, jnp.concatenate([emitted[:, -1:], window[:, 1 + size :], noise], axis=1)
