"""Linear layers of multi-head attention, with a norm over each head of queries and keys."""

from typing import Any, Literal

import einops
import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.layers.linear import default_init, linear
from jworld.models.layers.norms import layer_norm, rms_norm


class Projections(nnx.Module):
    """Queries from tokens [..., D], keys and values from a context [..., E], and the output layer.

    Norms have weights per channel of a head, shared by the heads, eps 1e-6; their statistics are float32.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        context_width: int | None = None,
        use_bias: bool = True,
        norm: Literal["rms", "layer"] = "rms",
        kernel_init: jax.nn.initializers.Initializer = default_init,
        dtype: Any,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Create the layers; `context_width` is E, None for self-attention."""
        self.num_heads = num_heads
        context_width = context_width or width
        common: dict[str, Any] = {
            "use_bias": use_bias,
            "kernel_init": kernel_init,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.query = linear(width, width, ("embed", "heads"), **common)
        self.key = linear(context_width, width, ("embed", "heads"), **common)
        self.value = linear(context_width, width, ("embed", "heads"), **common)
        make = {"rms": rms_norm, "layer": layer_norm}[norm]
        self.query_norm, self.key_norm = (
            make(width // num_heads, eps=1e-6, param_dtype=param_dtype, rngs=rngs) for _ in range(2)
        )
        self.out = linear(width, width, ("heads", "embed"), **common)

    def heads(self, x: jax.Array, context: jax.Array | None = None) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return q [..., N, K] of x [..., D], and k and v [..., N, K] of the context or, without one, of x."""
        context = x if context is None else context
        q, k, v = (
            einops.rearrange(projection(tokens), "... (n k) -> ... n k", n=self.num_heads)
            for projection, tokens in ((self.query, x), (self.key, context), (self.value, context))
        )
        return self.query_norm(q).astype(v.dtype), self.key_norm(k).astype(v.dtype), v
