"""Adaptive layer norm: a conditioning vector shifts, scales and gates a token stream (DiT, arXiv 2212.09748)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.layers.linear import linear, zeros_init
from jworld.parallel.axes import constrain_if_divisible


class Modulation(nnx.Module):
    """Linear(SiLU(vector)) split into `parts`: [..., D] -> parts x [..., width], float32, zero-initialized.

    With a `rank` the matrix is a product of two, D -> rank -> parts * width (AdaLN-LoRA, arXiv 2310.00426).
    `leading` has the logical axes of the vector's dimensions but the last, if its sharding is stated.
    """

    def __init__(
        self,
        vector_width: int,
        width: int,
        parts: int,
        *,
        rank: int | None = None,
        use_bias: bool = True,
        leading: tuple[str | None, ...] | None = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.parts, self.leading = parts, leading
        common: dict[str, Any] = {
            "use_bias": use_bias,
            "dtype": jnp.float32,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        if rank is not None:
            self.reduce = linear(vector_width, rank, ("embed", None), **common)
        inputs = vector_width if rank is None else rank
        self.linear = linear(inputs, parts * width, ("embed", "mlp"), kernel_init=zeros_init, **common)
        self.rank = rank

    def __call__(self, vector: jax.Array, offset: jax.Array | None = None) -> tuple[jax.Array, ...]:
        """Modulate; `offset` [..., at least parts * width] is truncated to the output and added before the split."""
        hidden = self._placed(nnx.silu(vector))
        out = self._placed(self.linear(hidden if self.rank is None else self._placed(self.reduce(hidden))))
        if offset is not None:
            out = out + offset[..., : out.shape[-1]]
        return tuple(jnp.split(out, self.parts, axis=-1))

    def _placed(self, x: jax.Array) -> jax.Array:
        return x if self.leading is None else constrain_if_divisible(x, *self.leading, None)


def modulated_norm(x: jax.Array, shift: jax.Array, scale: jax.Array, *, eps: float = 1e-6) -> jax.Array:
    """Apply layer norm without weights, then x * (1 + scale) + shift; [..., D] in x's dtype, computed in float32."""
    wide = x.astype(jnp.float32)
    mean = jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(wide - mean), axis=-1, keepdims=True)
    normed = (wide - mean) * jax.lax.rsqrt(variance + eps)
    return (normed * (1 + scale) + shift).astype(x.dtype)


def gated(residual: jax.Array, update: jax.Array, gate: jax.Array) -> jax.Array:
    """Return residual + gate * update, in residual's dtype; the product in float32."""
    return (residual.astype(jnp.float32) + gate * update.astype(jnp.float32)).astype(residual.dtype)
