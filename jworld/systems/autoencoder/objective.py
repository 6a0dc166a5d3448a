"""What an autoencoder is trained for: pixels, their differences, and a posterior that stays near a unit Gaussian."""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jworld.models.autoencoders import linear, network
from jworld.models.autoencoders.latents import Posterior
from jworld.utils import errors

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Weights of the terms beside the absolute error of pixels in [-1, 1], whose weight is 1.

    Attributes:
      gradient: of `gradient_error`, which keeps edges sharp and motion steady. Most neighbours hardly differ, so a
        network that knows nothing yet serves it best with one colour everywhere, and stays there: 0 for a start from
        nothing.
      kl: of `divergence`; small, so that latents stay bounded and the decoder bears a little noise.
    """

    gradient: float = 0.0
    kl: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("gradient", "kl"):
            if getattr(self, name) < 0:
                raise errors.UserError(f"config.loss.{name} is {getattr(self, name)}: expected at least 0")


def loss(
    model: network.VideoAutoencoder, batch: Batch, key: jax.Array, config: ObjectiveConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Scalar float32 loss of a batch {"video": uint8 [B, T, H, W, 3]}, and its terms; `key` draws the latents."""
    video = linear.to_float(batch["video"])
    posterior = model.posterior(video)
    made = model.decode(model.config.normalisation.apply(posterior.sample(key)))
    # CogVideoX's makes three frames too many of an even number of latents, at the start.
    error = made[:, -video.shape[1] :] - video
    terms = {"l1": jnp.mean(jnp.abs(error)), "gradient": gradient_error(error), "kl": divergence(posterior)}
    total = terms["l1"] + config.gradient * terms["gradient"] + config.kl * terms["kl"]
    # White is 2 away from black.
    return total, terms | {"psnr": -10 * jnp.log10(jnp.mean(jnp.square(error)) / 4)}


def gradient_error(error: jax.Array) -> jax.Array:
    """Mean absolute finite difference of errors [B, T, H, W, C] along each of t, y and x, the three added."""
    return sum((jnp.mean(jnp.abs(jnp.diff(error, axis=axis))) for axis in (1, 2, 3)), jnp.zeros(()))


def divergence(posterior: Posterior) -> jax.Array:
    """Kullback-Leibler divergence from the unit Gaussian, the mean over the elements of the latents."""
    logvar = jnp.clip(posterior.logvar, -30.0, 20.0)
    return 0.5 * jnp.mean(jnp.square(posterior.mean) + jnp.exp(logvar) - 1.0 - logvar)
