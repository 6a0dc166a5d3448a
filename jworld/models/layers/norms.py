"""Norms over channels, computed in float32, with replicated weights."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

_REPLICATED = {"out_sharding": (None,)}


def rms_norm(features: int, *, eps: float, param_dtype: Any, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """Create an RMS norm with a scale; float32."""
    return nnx.RMSNorm(
        features, epsilon=eps, dtype=jnp.float32, param_dtype=param_dtype, scale_metadata=_REPLICATED, rngs=rngs
    )


def layer_norm(features: int, *, eps: float, param_dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Create a layer norm with a scale and a bias; float32."""
    return nnx.LayerNorm(
        features,
        epsilon=eps,
        dtype=jnp.float32,
        param_dtype=param_dtype,
        scale_metadata=_REPLICATED,
        bias_metadata=_REPLICATED,
        rngs=rngs,
    )


class OffsetRMSNorm(nnx.Module):
    """RMS norm x / rms(x) * (1 + scale), in the dtype of x; the scale is initialized with zeros."""

    def __init__(self, features: int, *, eps: float, param_dtype: Any = jnp.float32):
        self.eps = eps
        self.scale = nnx.Param(jnp.zeros((features,), param_dtype), out_sharding=(None,))

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (normed * (1 + self.scale[...].astype(jnp.float32))).astype(x.dtype)
