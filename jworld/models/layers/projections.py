"""The linear layers of multi-head attention, with RMS norm over each head of queries and keys."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.layers.linear import default_init, linear


class Projections(nnx.Module):
    """Queries from tokens [..., D], keys and values from a context [..., E], and the layer behind attention.

    Norms have one weight per channel of a head, shared by the heads, eps 1e-6; their statistics are float32.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        context_width: int | None = None,
        use_bias: bool = True,
        kernel_init: jax.nn.initializers.Initializer = default_init,
        dtype: Any,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """`context_width` is E; None for self-attention."""
        self.num_heads = num_heads
        context_width = context_width or width
        common: dict[str, Any] = {
            "use_bias": use_bias,
            "kernel_init": kernel_init,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        norm: dict[str, Any] = {
            "epsilon": 1e-6,
            "dtype": jnp.float32,
            "param_dtype": param_dtype,
            "scale_metadata": {"out_sharding": (None,)},
            "rngs": rngs,
        }
        self.query = linear(width, width, ("embed", "heads"), **common)
        self.key = linear(context_width, width, ("embed", "heads"), **common)
        self.value = linear(context_width, width, ("embed", "heads"), **common)
        self.query_norm = nnx.RMSNorm(width // num_heads, **norm)
        self.key_norm = nnx.RMSNorm(width // num_heads, **norm)
        self.out = linear(width, width, ("heads", "embed"), **common)

    def heads(self, x: jax.Array, context: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """q [..., N, K] of x [..., D]; k and v [..., N, K] of the context, or of x."""
        context = x if context is None else context
        q, k, v = (
            projection(tokens).reshape(*tokens.shape[:-1], self.num_heads, -1)
            for projection, tokens in ((self.query, x), (self.key, context), (self.value, context))
        )
        return self.query_norm(q).astype(v.dtype), self.key_norm(k).astype(v.dtype), v
