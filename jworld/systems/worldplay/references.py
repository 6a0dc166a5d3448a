"""Conditions of latents on earlier ones with the nearest cameras, see `HunyuanConfig.references`.

They take the place of the published condition, which only the first latent has: the first image, with ones as mask.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jworld.cameras import nearest


class Known(NamedTuple):
    """Earlier latent frames.

    Attributes:
      latents: [B, M, H, W, C].
      w2c: their cameras [B, M, 4, 4].
      valid: bool [B, M], False for frames that do not count.
    """

    latents: jax.Array
    w2c: jax.Array
    valid: jax.Array


def find(w2c: jax.Array, known: Known, image: jax.Array) -> jax.Array:
    """Return condition and mask channels [B, F, H, W, C + 1] of frames: a reference, and the closeness of its camera.

    Where nothing is known, the frames are the first of a video: the reference is its first image.

    Args:
      w2c: cameras of the frames [B, F, 4, 4], in the world of the known ones.
      known: earlier frames.
      image: latents of the first image [B, 1, H, W, C].
    """
    starts = ~jnp.any(known.valid, axis=1, keepdims=True)
    latents = jnp.concatenate([known.latents.astype(jnp.float32), image.astype(jnp.float32)], axis=1)
    cameras, valid = jnp.concatenate([known.w2c, w2c[:, :1]], axis=1), jnp.concatenate([known.valid, starts], axis=1)
    index, closeness = nearest.nearest(w2c, cameras, valid)
    reference = jnp.take_along_axis(latents, index[:, :, None, None, None], axis=1)
    mask = jnp.broadcast_to(closeness[:, :, None, None, None], (*reference.shape[:-1], 1))
    return jnp.concatenate([reference, mask], axis=-1)
