"""Sliding noise windows (Swin-DPM): groups of frames whose noise grows with the distance from the present.

A window is one clean frame and G groups of `size` frames. Group g has times in its own range [g, g + 1) * 1000 / G.
After one pass over its range, group g has the noise level at which group g - 1 started. The first group is then
emitted, and pure noise enters at the end. Source: The Matrix (arXiv 2412.03568), `stage3/cogvideox/`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jworld.diffusion.v_prediction import NUM_TIMESTEPS


def frames(groups: int, size: int) -> int:
    """Return the number of frames of a window, including the clean one."""
    return 1 + groups * size


def timestep_rows(timesteps: np.ndarray, groups: int, size: int) -> np.ndarray:
    """Distribute a sampler's [steps] times over a window: [steps / groups, frames] int32, one row per step.

    Raises:
      ValueError: the number of steps is not a multiple of the groups.
    """
    if len(timesteps) % groups:
        raise ValueError(f"{len(timesteps)} sampling steps are not a multiple of {groups} noise groups")
    parts = np.sort(timesteps).reshape(groups, -1)[:, ::-1]
    rows = np.repeat(parts.T, size, axis=1)
    return np.concatenate([np.zeros((len(rows), 1), np.int32), rows.astype(np.int32)], axis=1)


def sample_timesteps(
    key: jax.Array,
    batch: int,
    groups: int,
    size: int,
    *,
    phases_per_group: int = 1,
    lowest: int = 0,
    level: jax.Array | None = None,
) -> jax.Array:
    """Draw [batch, frames] int32 training times: one draw per sample, the same offset in the range of every group.

    Args:
      phases_per_group: parts that a group's range is divided into; one of them is drawn per sample.
      lowest: smallest offset within a part.
      level: offset of all samples as a share of a part, from 0 to 1, instead of the draw.
    """
    span = NUM_TIMESTEPS // (groups * phases_per_group)
    offset_key, phase_key = jax.random.split(key)
    offset = jax.random.randint(offset_key, (batch, 1), lowest, span)
    if level is not None:
        offset = jnp.full_like(offset, lowest + level * (span - lowest))
    phase = jax.random.randint(phase_key, (batch, 1), 0, phases_per_group)
    times = offset + (jnp.arange(groups) * phases_per_group + phase) * span
    return jnp.pad(jnp.repeat(times, size, axis=1), ((0, 0), (1, 0)))


def advance(window: jax.Array, noise: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Shift a window [B, frames, ...] by one group.

    Returns:
      The emitted frames [B, size, ...] and the next window, which begins with the last of them.
    """
    emitted = window[:, 1 : 1 + size]
    return emitted, jnp.concatenate([emitted[:, -1:], window[:, 1 + size :], noise], axis=1)
