"""Two-layer perceptron of transformer blocks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.layers.linear import default_init, linear


def gelu_exact(x: jax.Array) -> jax.Array:
    """Apply the exact GELU, with the error function."""
    return jax.nn.gelu(x, approximate=False)


def gelu_tanh(x: jax.Array) -> jax.Array:
    """Apply the tanh approximation of GELU."""
    return jax.nn.gelu(x, approximate=True)


class MLP(nnx.Module):
    """Perceptron of linear, activation, linear: [..., D] -> [..., D]."""

    def __init__(
        self,
        width: int,
        hidden: int,
        activation: Callable[[jax.Array], jax.Array],
        *,
        use_bias: bool = True,
        kernel_init: jax.nn.initializers.Initializer = default_init,
        dtype: Any,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.activation = activation
        common: dict[str, Any] = {
            "use_bias": use_bias,
            "kernel_init": kernel_init,
            "dtype": dtype,
            "param_dtype": param_dtype,
            "rngs": rngs,
        }
        self.up = linear(width, hidden, ("embed", "mlp"), **common)
        self.down = linear(hidden, width, ("mlp", "embed"), **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.down(self.activation(self.up(x)))
