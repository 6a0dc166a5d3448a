"""Projective position encoding (PRoPE): attention channels transformed by the camera of their latent frame.

Only the projective half of the method is used, as in HY-WorldPlay's `camera_rope.py`. Every head channel is
transformed. Patch positions are not used, nor are the intrinsics except fx and fy.
"""

import jax
import jax.numpy as jnp

GROUP = 4


def projection_matrices(w2c: jax.Array, intrinsics: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Return P = diag(fx, fy, 1, 1) w2c and its inverse, float32.

    w2c [..., 4, 4] rigid, intrinsics [..., 3, 3] or None (then P is w2c) -> two arrays [..., 4, 4].
    """
    w2c = jnp.asarray(w2c, jnp.float32)
    rotation_t = jnp.swapaxes(w2c[..., :3, :3], -1, -2)
    # An explicit sum, because matrix units would round the translation to bfloat16.
    translation = -jnp.sum(rotation_t * w2c[..., None, :3, 3], axis=-1)
    upper = jnp.concatenate([rotation_t, translation[..., None]], axis=-1)
    inverse = jnp.concatenate([upper, w2c[..., 3:, :]], axis=-2)
    if intrinsics is None:
        return w2c, inverse
    focal = jnp.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], axis=-1).astype(jnp.float32)
    scale = jnp.concatenate([focal, jnp.ones_like(focal)], axis=-1)
    return scale[..., :, None] * w2c, inverse / scale[..., None, :]


def apply(matrices: jax.Array, x: jax.Array) -> jax.Array:
    """Multiply every group of 4 channels, as a column vector, by its frame's matrix; computed in float32.

    matrices [B, F, 4, 4], x [B, F, T, N, K] with T tokens per frame and K a multiple of 4 -> like x.
    Queries take P transposed, keys and values P inverse, the attention's output P.
    """
    groups = x.reshape(*x.shape[:-1], x.shape[-1] // GROUP, GROUP)
    out = jnp.einsum("bfij,bftngj->bftngi", matrices, groups.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)
    return out.reshape(x.shape).astype(x.dtype)
