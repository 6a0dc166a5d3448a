"""Rectified flow of Cosmos-Predict2: variance-exploding noise sigma, given to the network as a time in 0..1.

x = clean + sigma * noise is the straight line of flow matching, scaled: with t = sigma / (1 + sigma),
x / (1 + sigma) = (1 - t) * clean + t * noise, and the network predicts the velocity noise - clean.

Sources: cosmos-predict2 `models/video2world_model.py`, `pipelines/video2world.py`, `module/denoiser_scaling.py`;
the input and output scales of the network follow EDM, https://arxiv.org/abs/2206.00364.
Videos are [B, F, H, W, C] float32, noise levels [B], [B, 1] or [B, F].
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jworld.diffusion import flow_matching

#: Noise level reported to the network for conditioning frames.
GIVEN_SIGMA = 1e-4
#: Range of the rare large noise levels; their share is the option `high_ratio`.
HIGH_SIGMA = (200.0, 100_000.0)
#: Factor of the training loss.
LOSS_SCALE = 10.0

#: (scaled video [B, F, H, W, C], times [B, 1 or F]) -> velocity [B, F, H, W, C].
Network = Callable[[jax.Array, jax.Array], jax.Array]


class ConditioningFrames(NamedTuple):
    """Conditioning frames: clean frames that a prediction starts from.

    Attributes:
      frames: [B, F, H, W, C] clean latents; only those under the mask are read.
      mask: [B, F] 1 for a conditioning frame, 0 for one to predict.
      sigma: noise level that the network receives for them, although they enter clean.
    """

    frames: jax.Array
    mask: jax.Array
    sigma: float = GIVEN_SIGMA


def time_of(sigma: jax.Array) -> jax.Array:
    """Return sigma / (1 + sigma)."""
    return sigma / (1 + sigma)


def per_frame(values: jax.Array) -> jax.Array:
    """Reshape [B], [B, 1] or [B, F] to [B, 1 or F, 1, 1, 1], to broadcast against a video."""
    return values.reshape(values.shape[0], -1, 1, 1, 1)


# Preconditioning


def network_inputs(noisy: jax.Array, sigma: jax.Array, given: ConditioningFrames | None) -> tuple[jax.Array, jax.Array]:
    """Return the scaled video and times [B, F], or [B, 1] for one level without conditioning frames.

    Conditioning frames replace the noisy ones, clean and unscaled, and have their own time.
    """
    time = time_of(sigma).reshape(sigma.shape[0], -1)
    return flow_inputs(noisy * per_frame(1 - time), time, given)


def clean_from_velocity(
    velocity: jax.Array, noisy: jax.Array, sigma: jax.Array, given: ConditioningFrames | None
) -> jax.Array:
    """Return the prediction of the clean video, float32; conditioning frames keep their values."""
    time = per_frame(time_of(sigma))
    return _with_given((1 - time) * noisy - time * velocity.astype(jnp.float32), given)


def flow_inputs(video: jax.Array, time: jax.Array, given: ConditioningFrames | None) -> tuple[jax.Array, jax.Array]:
    """Return the network's video and times for the scaled video (1 - t) * clean + t * noise at times [B, 1]."""
    if given is None:
        return video, time
    times = given.mask * (given.sigma / (1 + given.sigma)) + (1 - given.mask) * time
    return _with_given(video, given), times


def denoise_flow(network: Network, video: jax.Array, time: jax.Array, given: ConditioningFrames | None) -> jax.Array:
    """Predict the clean video from (1 - t) * clean + t * noise at times [B]; 1 is pure noise."""
    velocity = network(*flow_inputs(video, time[:, None], given))
    return _with_given(video - per_frame(time) * velocity.astype(jnp.float32), given)


def _with_given(video: jax.Array, given: ConditioningFrames | None) -> jax.Array:
    """Replace the conditioning frames of a video by the given ones."""
    if given is None:
        return video
    mask = per_frame(given.mask)
    return mask * given.frames + (1 - mask) * video


def denoise(network: Network, noisy: jax.Array, sigma: jax.Array, given: ConditioningFrames | None) -> jax.Array:
    """Predict the clean video from `noisy` = clean + sigma * noise; `given` is None for images."""
    velocity = network(*network_inputs(noisy, sigma, given))
    return clean_from_velocity(velocity, noisy, sigma, given)


def noise_from_clean(clean: jax.Array, noisy: jax.Array, sigma: jax.Array) -> jax.Array:
    """Return the noise implied by a prediction of the clean video."""
    return (noisy - clean) / per_frame(sigma)


def guided(conditional: jax.Array, unconditional: jax.Array, guidance: float) -> jax.Array:
    """Return conditional + guidance * (conditional - unconditional): in the usual convention the scale is 1 + guidance.

    `unconditional` is the prediction for the negative prompt; conditioning frames are the same in both.
    """
    return conditional + guidance * (conditional - unconditional)


# Training


def sample_sigma(
    key: jax.Array,
    batch: int,
    *,
    frames: int,
    high_ratio: float = 0.0,
    mean: float = 0.0,
    std: float = 1.0,
) -> jax.Array:
    """Draw [B, 1] noise levels exp(mean + std * normal) * sqrt(frames), one for all frames of a sample.

    Frames of a video are correlated, so longer videos need more noise; an image has one frame.

    Args:
      key: random key.
      batch: B.
      frames: latent frames.
      high_ratio: share of samples that get exp(uniform) in `HIGH_SIGMA` instead, the levels where sampling starts.
      mean, std: of the logarithm.
    """
    normal_key, choice_key, high_key = jax.random.split(key, 3)
    sigma = jnp.exp(mean + std * jax.random.normal(normal_key, (batch, 1))) * frames**0.5
    low, high = (jnp.log(edge) for edge in HIGH_SIGMA)
    rare = jnp.exp(jax.random.uniform(high_key, (batch, 1), minval=low, maxval=high))
    return jnp.where(jax.random.uniform(choice_key, (batch, 1)) < high_ratio, rare, sigma)


def given_mask(counts: jax.Array, frames: int) -> jax.Array:
    """Return the [B, F] mask of the first frames; `counts` [B] is the number of conditioning frames."""
    return (jnp.arange(frames) < counts[:, None]).astype(jnp.float32)


def add_noise(clean: jax.Array, noise: jax.Array, sigma: jax.Array) -> jax.Array:
    """Return clean + sigma * noise."""
    return clean + per_frame(sigma) * noise


def squared_error(clean: jax.Array, prediction: jax.Array, sigma: jax.Array) -> jax.Array:
    """Return [B, F, H, W, C] squared errors in units of the velocity: weighted by (1 + sigma)^2 / sigma^2.

    Conditioning frames have zero error, but count in a mean over all frames.
    """
    return jnp.square((clean - prediction) / per_frame(time_of(sigma)))


def training_loss(
    network: Network,
    clean: jax.Array,
    noise: jax.Array,
    sigma: jax.Array,
    mask: jax.Array | None,
    *,
    given_sigma: float = GIVEN_SIGMA,
    scale: float = LOSS_SCALE,
    sigma_floor: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
    """Compute the loss of a batch.

    Args:
      network: function of scaled video and times only; its other inputs are bound.
      clean: [B, F, H, W, C] latents, conditioning frames included.
      noise: standard normal, like `clean`.
      sigma: [B, 1] of `sample_sigma`.
      mask: [B, F] conditioning frames, or None for images.
      given_sigma: as in `ConditioningFrames`.
      scale: factor of the loss.
      sigma_floor: time below which errors count less, see `flow_matching.error_weights`.

    Returns:
      `scale` times the weighted mean of `squared_error`, and its unweighted means per frame, [B, F].
    """
    prediction = predict(network, clean, noise, sigma, mask, given_sigma=given_sigma)
    error = squared_error(clean, prediction, sigma)
    weight = per_frame(flow_matching.error_weights(time_of(sigma), sigma_floor))
    return scale * jnp.mean(weight * error), jnp.mean(error, axis=(2, 3, 4))


def predict(
    network: Network,
    clean: jax.Array,
    noise: jax.Array,
    sigma: jax.Array,
    mask: jax.Array | None,
    *,
    given_sigma: float = GIVEN_SIGMA,
) -> jax.Array:
    """Add noise to clean latents and return the prediction of them; see `training_loss`."""
    given = None if mask is None else ConditioningFrames(clean, mask, given_sigma)
    return denoise(network, add_noise(clean, noise, sigma), sigma, given)
