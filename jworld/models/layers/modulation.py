"""Adaptive layer norm: a conditioning vector shifts, scales and gates a token stream (DiT, arXiv 2212.09748)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.layers.linear import linear, zeros_init


class Modulation(nnx.Module):
    """Linear(SiLU(vector)) cut into `parts`: [..., D] -> parts x [..., width], float32, zero at the start."""

    def __init__(self, vector_width: int, width: int, parts: int, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        self.parts = parts
        self.linear = linear(
            vector_width,
            parts * width,
            ("embed", "mlp"),
            dtype=jnp.float32,
            param_dtype=param_dtype,
            rngs=rngs,
            kernel_init=zeros_init,
        )

    def __call__(self, vector: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(jnp.split(self.linear(nnx.silu(vector)), self.parts, axis=-1))


def modulated_norm(x: jax.Array, shift: jax.Array, scale: jax.Array, *, eps: float = 1e-6) -> jax.Array:
    """Layer norm without weights, then x * (1 + scale) + shift; [..., D] in x's dtype, computed in float32."""
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(wide - mean), axis=-1, keepdims=True)
    normed = (wide - mean) * jax.lax.rsqrt(variance + eps)
    return (normed * (1 + scale) + shift).astype(x.dtype)


def gated(residual: jax.Array, update: jax.Array, gate: jax.Array) -> jax.Array:
    """residual + gate * update, in residual's dtype; the product in float32."""
    return (residual.astype(jnp.float32) + gate * update.astype(jnp.float32)).astype(residual.dtype)
