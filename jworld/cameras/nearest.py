"""The earlier camera that is nearest to another one."""

import jax
import jax.numpy as jnp

from jworld.cameras import memory

#: Closeness falls to 1/e over this distance, see `nearest`.
REACH = 0.2


def nearest(
    w2c: jax.Array, known: jax.Array, valid: jax.Array, view: memory.View = memory.PUBLISHED_VIEW
) -> tuple[jax.Array, jax.Array]:
    """Find the nearest of the known cameras for each of some others.

    A distance is the angle between two cameras as a share of the width of the view, plus the distance of their centers
    as a share of the range of sight.

    Args:
      w2c: cameras [..., F, 4, 4].
      known: known cameras [..., M, 4, 4] in the same world.
      valid: bool [..., M], False for cameras that do not count.
      view: the unit of distances.

    Returns:
      Index of the nearest known camera [..., F], the last one of several; and its closeness float32 [..., F]: 1 for the
      same camera, less for others, 0 if none is valid.
    """
    (rotation, center), (known_rotation, known_center) = _parts(w2c), _parts(known)
    turned = jnp.linalg.norm(
        (rotation[..., :, None, :, :] - known_rotation[..., None, :, :, :]).reshape(
            *rotation.shape[:-2], known.shape[-3], 9
        ),
        axis=-1,
    )
    # The norm of the difference of two rotations is 2 sqrt(2) sin(angle / 2).
    angle = 2 * jnp.arcsin(jnp.minimum(turned / 8**0.5, 1.0))
    moved = jnp.linalg.norm(center[..., :, None, :] - known_center[..., None, :, :], axis=-1)
    distance = angle / jnp.deg2rad(view.fov[0]) + moved / view.radius
    distance = jnp.where(valid[..., None, :], distance, jnp.inf)
    # The last one of several, which in a rollout is the latest.
    index = distance.shape[-1] - 1 - jnp.argmin(distance[..., ::-1], axis=-1)
    return index, jnp.exp(-jnp.min(distance, axis=-1) / REACH)


def _parts(w2c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return rotations [..., 3, 3] and camera centers [..., 3]."""
    rotation = w2c[..., :3, :3].astype(jnp.float32)
    center = -jnp.einsum("...ji,...j->...i", rotation, w2c[..., :3, 3].astype(jnp.float32))
    return rotation, center
