"""Norms over channels, computed and returned in float32, whose weights every device holds in full."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

_REPLICATED = {"out_sharding": (None,)}


def rms_norm(features: int, *, eps: float, param_dtype: Any, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """RMS norm with a scale."""
    return nnx.RMSNorm(
        features, epsilon=eps, dtype=jnp.float32, param_dtype=param_dtype, scale_metadata=_REPLICATED, rngs=rngs
    )


def layer_norm(features: int, *, eps: float, param_dtype: Any, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer norm with a scale and a bias."""
    return nnx.LayerNorm(
        features,
        epsilon=eps,
        dtype=jnp.float32,
        param_dtype=param_dtype,
        scale_metadata=_REPLICATED,
        bias_metadata=_REPLICATED,
        rngs=rngs,
    )
