"""Gaussian posteriors over latents, and the normalization that diffusion models expect; all float32."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Normalization:
    """Normalization (latents - shift) * scale, with one number for all channels or one per channel."""

    shift: tuple[float, ...] = (0.0,)
    scale: tuple[float, ...] = (1.0,)

    @classmethod
    def from_statistics(cls, mean: tuple[float, ...], std: tuple[float, ...]) -> "Normalization":
        return cls(shift=mean, scale=tuple(1 / value for value in std))

    def apply(self, latents: jax.Array) -> jax.Array:
        """Normalize [..., C] -> [..., C]."""
        return (latents.astype(jnp.float32) - jnp.array(self.shift)) * jnp.array(self.scale)

    def invert(self, latents: jax.Array) -> jax.Array:
        """Invert `apply`: [..., C] -> [..., C]."""
        return latents.astype(jnp.float32) / jnp.array(self.scale) + jnp.array(self.shift)


class Posterior(NamedTuple):
    """Posterior of an encoder, not normalized: both [B, F, H', W', C] float32. The mode is the mean."""

    mean: jax.Array
    logvar: jax.Array

    def sample(self, key: jax.Array) -> jax.Array:
        deviation = jnp.exp(0.5 * jnp.clip(self.logvar, -30.0, 20.0))
        return self.mean + deviation * jax.random.normal(key, self.mean.shape)
