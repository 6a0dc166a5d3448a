"""Embeddings of scalars: diffusion times and action labels."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jworld.models.layers.linear import linear
from jworld.parallel.axes import constrain_if_divisible

MAX_PERIOD = 10_000


def sinusoidal(values: jax.Array, dim: int) -> jax.Array:
    """Embed [...] -> [..., dim] float32: cosines first, then sines, frequencies 10000^(-k / (dim/2)).

    Source: the timestep embedding of GLIDE, https://arxiv.org/abs/2112.10741.
    """
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(float(MAX_PERIOD)) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = values.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class ScalarEmbedding(nnx.Module):
    """Embedding of scalars: sinusoid, linear, SiLU, linear; [...] -> [..., width] float32."""

    def __init__(
        self,
        width: int,
        *,
        frequency_dim: int = 256,
        zero_output: bool = False,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Create the layers; `zero_output` initializes the output with zeros, for inputs added to a trained network."""
        self.frequency_dim = frequency_dim
        normal = nnx.initializers.normal(0.02)
        output_init = nnx.initializers.zeros_init() if zero_output else normal
        # float32: bfloat16 is too coarse for the sinusoid of t up to 1000.
        common: dict[str, Any] = {"dtype": jnp.float32, "param_dtype": param_dtype, "rngs": rngs}
        self.hidden = linear(frequency_dim, width, (None, "embed"), kernel_init=normal, **common)
        self.output = linear(width, width, ("embed", "mlp"), kernel_init=output_init, **common)

    def __call__(self, values: jax.Array, added: jax.Array | None = None) -> jax.Array:
        """Embed `values`; `added` [..., frequency_dim], another embedding, is added to the sinusoid."""
        wave = sinusoidal(values, self.frequency_dim)
        hidden = self._placed(nnx.silu(self.hidden(wave if added is None else wave + added)))
        return self._placed(self.output(hidden))

    def _placed(self, x: jax.Array) -> jax.Array:
        """Keep [B, D] or [B, F, D] where its samples and frames are, instead of where the kernel's shards are."""
        if x.ndim not in (2, 3):
            return x
        return constrain_if_divisible(x, "batch", *["frames"] * (x.ndim - 2), None)
