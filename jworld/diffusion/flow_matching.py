"""Flow matching on the line between data and noise: x_t = (1 - sigma) x_0 + sigma noise, t = 1000 sigma.

Sources: SD3 (arXiv 2403.03206) for the time distributions and the shift; HY-WorldPlay's
`ar_hunyuan_mem_training_pipeline.py` for the integer time table.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

NUM_TIMESTEPS = 1000

Array = TypeVar("Array", jax.Array, np.ndarray)


def shifted(x: Array, shift: float) -> Array:
    """Move times x in [0, 1] toward noise: shift * x / (1 + (shift - 1) * x)."""
    return shift * x / (1 + (shift - 1) * x)


def sample_unit_times(
    key: jax.Array,
    shape: tuple[int, ...],
    *,
    weighting: str,
    logit_mean: float = 0.0,
    logit_std: float = 1.0,
    mode_scale: float = 1.29,
) -> jax.Array:
    """Draw u in [0, 1) before the shift; `weighting` is "logit_normal", "mode" or "uniform" (SD3, section 3.1)."""
    if weighting == "logit_normal":
        return jax.nn.sigmoid(logit_mean + logit_std * jax.random.normal(key, shape))
    u = jax.random.uniform(key, shape)
    if weighting == "mode":
        return 1 - u - mode_scale * (jnp.square(jnp.cos(jnp.pi * u / 2)) - 1 + u)
    return u


def training_timesteps(u: jax.Array, shift: float) -> jax.Array:
    """Map u in [0, 1) to integer times 1..1000 (float32): u is floored to a thousandth, shifted and rounded up.

    The original indexes its table out of range for u < 0.001; here that draw is time 1.
    """
    steps = np.arange(NUM_TIMESTEPS) / NUM_TIMESTEPS
    # Float64 with a margin: s(k) is a whole number for some k, and must not be rounded up to the next one.
    table = np.ceil(NUM_TIMESTEPS * shift * steps / (1 + (shift - 1) * steps) - 1e-9)
    index = jnp.clip(jnp.floor(u * NUM_TIMESTEPS).astype(jnp.int32), 0, NUM_TIMESTEPS - 1)
    return jnp.asarray(np.maximum(table, 1), jnp.float32)[index]


def add_noise(clean: jax.Array, noise: jax.Array, sigma: jax.Array) -> jax.Array:
    """Return (1 - sigma) * clean + sigma * noise; sigma broadcasts."""
    return (1 - sigma) * clean + sigma * noise


def velocity(clean: jax.Array, noisy: jax.Array, sigma: jax.Array) -> jax.Array:
    """Return the velocity noise - clean that a prediction of the clean latents implies; sigma > 0 broadcasts."""
    return (noisy - clean) / sigma


def error_weights(sigma: jax.Array, floor: float) -> jax.Array:
    """Return the weights of squared errors of velocities at these noise levels in 0..1.

    Below the level `floor` a squared error counts as much as that of clean latents there: a network that predicts clean
    latents is wrong by error / sigma, and rare low levels would outweigh all others (as Min-SNR weighting does, arXiv
    2303.09556). With a floor of 0, all levels count alike.
    """
    return jnp.square(jnp.minimum(sigma / floor, 1.0)) if floor else jnp.ones_like(sigma)


def sampling_sigmas(num_steps: int, shift: float) -> jax.Array:
    """Return [num_steps + 1] float32 noise levels from 1 to 0; the time of step i is 1000 * sigma[i]."""
    return shifted(jnp.linspace(1.0, 0.0, num_steps + 1), shift)


def euler_step(x: jax.Array, velocity: jax.Array, sigma: jax.Array, next_sigma: jax.Array) -> jax.Array:
    """Take one step along the velocity, in float32."""
    return x.astype(jnp.float32) + (next_sigma - sigma) * velocity.astype(jnp.float32)
