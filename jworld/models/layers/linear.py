"""Dense layer of every network: an `nnx.Linear` whose parameters carry logical axes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

# PyTorch's default for nn.Linear, used by the published networks: uniform in +-1/sqrt(fan in).
default_init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
zeros_init = nnx.initializers.zeros_init()


def truncated_init(key: jax.Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> jax.Array:
    """Sample a normal with a deviation of 1/sqrt(fan in), truncated at three deviations."""
    return jax.nn.initializers.truncated_normal(shape[0] ** -0.5, dtype, lower=-3.0, upper=3.0)(key, shape)


class Linear(nnx.Linear):
    """Dense layer to which `layers.lora` can add an adapter; the adapter's output is added."""

    lora: Callable[[jax.Array, Any], jax.Array] | None = None

    def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
        y = super().__call__(inputs, out_sharding)
        return y if self.lora is None else y + self.lora(inputs, y.dtype)


def linear(
    in_features: int,
    out_features: int,
    axes: tuple[str | None, str | None],
    *,
    dtype: Any,
    param_dtype: Any = jnp.float32,
    rngs: nnx.Rngs,
    kernel_init: jax.nn.initializers.Initializer = default_init,
    use_bias: bool = True,
) -> Linear:
    """Create a layer [..., in_features] -> [..., out_features].

    `axes` are the logical names of the kernel's dimensions.

    The bias is replicated unless the output axis is sharded.
    """
    return Linear(
        in_features,
        out_features,
        use_bias=use_bias,
        dtype=dtype,
        param_dtype=param_dtype,
        rngs=rngs,
        kernel_init=kernel_init,
        kernel_metadata={"out_sharding": axes},
        bias_metadata={"out_sharding": (axes[1],)},
    )
