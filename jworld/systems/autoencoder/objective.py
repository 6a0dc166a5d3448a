"""Training objective of autoencoders: pixels, their finite differences, and a posterior near a unit Gaussian."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jworld.models.autoencoders import linear, network
from jworld.models.autoencoders.latents import Posterior
from jworld.utils import ranges

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights of the loss terms (`config.loss`), of pixels in [-1, 1].

    Attributes:
      absolute: weight of the mean absolute error.
      squared: weight of the mean squared error, on which the PSNR depends alone.
      gradient: weight of `gradient_error`, which keeps edges sharp and motion steady. Most neighboring pixels hardly
        differ, so an untrained network can minimize this term with one color everywhere, and does not leave that
        minimum. Use 0 when training from scratch.
      kl: weight of `divergence`; a small one bounds the latents and makes the decoder robust to a little noise.
    """

    absolute: ranges.PositiveOrZero = 1.0
    squared: ranges.PositiveOrZero = 0.0
    gradient: ranges.PositiveOrZero = 0.0
    kl: ranges.PositiveOrZero = 1e-6

    def __post_init__(self) -> None:
        ranges.check(self)
        if not (self.absolute or self.squared or self.gradient):
            raise ValueError("absolute, squared and gradient are all 0, expected one above 0: nothing would train")


def loss(
    model: network.VideoAutoencoder, batch: Batch, key: jax.Array, config: ObjectiveConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Compute the scalar float32 loss of a batch {"video": uint8 [B, T, H, W, 3]}, and its terms.

    `key` draws the latents from the posterior.
    """
    video = linear.to_float(batch["video"])
    posterior = model.posterior(video)
    decoded = model.decode(model.config.normalisation.apply(posterior.sample(key)))
    # CogVideoX decodes an even number of latents to three extra frames at the start.
    error = decoded[:, -video.shape[1] :] - video
    squared = jnp.mean(jnp.square(error))
    terms = {"l1": jnp.mean(jnp.abs(error)), "gradient": gradient_error(error), "kl": divergence(posterior)}
    total = config.absolute * terms["l1"] + config.squared * squared
    total += config.gradient * terms["gradient"] + config.kl * terms["kl"]
    # The peak is 2, the distance from black (-1) to white (1).
    return total, terms | {"psnr": -10 * jnp.log10(squared / 4)}


def gradient_error(error: jax.Array) -> jax.Array:
    """Return the mean absolute finite differences of errors [B, T, H, W, C], summed over t, y and x."""
    return sum((jnp.mean(jnp.abs(jnp.diff(error, axis=axis))) for axis in (1, 2, 3)), jnp.zeros(()))


def divergence(posterior: Posterior) -> jax.Array:
    """Return the Kullback-Leibler divergence from the unit Gaussian, averaged over the elements of the latents."""
    logvar = jnp.clip(posterior.logvar, -30.0, 20.0)
    return 0.5 * jnp.mean(jnp.square(posterior.mean) + jnp.exp(logvar) - 1.0 - logvar)
