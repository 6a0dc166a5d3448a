"""Diffusion on a variance-preserving path, predicting v: x_t = sqrt(a) x_0 + sqrt(1 - a) noise.

a is the cumulative product of alphas at time t in 0..999, one number per sample or per frame: every function takes `a`
with the leading axes of the arrays, so that a window whose frames have times of their own needs no code of its own.
Sources: progressive distillation (arXiv 2202.00512) for v, DDIM (arXiv 2010.02502), DPM-Solver++ (arXiv 2211.01095),
zero terminal SNR (arXiv 2305.08891), CogVideoX (arXiv 2408.06072) for the shift.
"""

import jax
import jax.numpy as jnp
import numpy as np

NUM_TIMESTEPS = 1000


def alphas_cumprod(*, beta_start: float = 0.00085, beta_end: float = 0.012, snr_shift: float = 3.0) -> np.ndarray:
    """[1000] float64, from almost 1 down to exactly 0: scaled-linear betas, shifted, then without terminal signal."""
    betas = np.linspace(beta_start**0.5, beta_end**0.5, NUM_TIMESTEPS) ** 2
    alphas = np.cumprod(1 - betas)
    alphas = alphas / (snr_shift + (1 - snr_shift) * alphas)
    root = np.sqrt(alphas)
    return np.square((root - root[-1]) * root[0] / (root[0] - root[-1]))


def at(alphas: np.ndarray, timestep: jax.Array | np.ndarray) -> jax.Array:
    """a of integer times of any shape, float32; 1 before time 0."""
    # Rounded once: in bfloat16, as the original casts it, 1 - a of clean frames would be noise.
    table = jnp.asarray(alphas, jnp.float32)
    return jnp.where(timestep < 0, 1.0, table[jnp.maximum(timestep, 0)])


def spaced_timesteps(steps: int, spacing: str) -> np.ndarray:
    """[steps] int32 times of a sampler, noisiest first; `spacing` is "trailing", "linspace" or "leading".

    The published scheduler's names (arXiv 2305.08891, table 2).
    """
    match spacing:
        case "trailing":
            times = np.round(np.arange(NUM_TIMESTEPS, 0, -NUM_TIMESTEPS / steps)) - 1
        case "linspace":
            times = np.round(np.linspace(0, NUM_TIMESTEPS - 1, steps))[::-1]
        case "leading":
            times = (np.arange(steps) * (NUM_TIMESTEPS // steps))[::-1]
        case _:
            raise ValueError(f"spacing is {spacing!r}, expected trailing, linspace or leading")
    return times.astype(np.int32)


def add_noise(clean: jax.Array, noise: jax.Array, a: jax.Array) -> jax.Array:
    """x_t, in float32."""
    a = _like(a, clean)
    return jnp.sqrt(a) * clean + jnp.sqrt(1 - a) * noise


def velocity(clean: jax.Array, noise: jax.Array, a: jax.Array) -> jax.Array:
    """v = sqrt(a) noise - sqrt(1 - a) x_0: what the network predicts."""
    a = _like(a, clean)
    return jnp.sqrt(a) * noise - jnp.sqrt(1 - a) * clean


def clean_from_velocity(x: jax.Array, v: jax.Array, a: jax.Array) -> jax.Array:
    """x_0 = sqrt(a) x_t - sqrt(1 - a) v."""
    a = _like(a, x)
    return jnp.sqrt(a) * x - jnp.sqrt(1 - a) * v


def ddim_step(x: jax.Array, clean: jax.Array, a: jax.Array, a_next: jax.Array) -> jax.Array:
    """Deterministic step from the level `a` to the less noisy `a_next`."""
    a, a_next = _like(a, x), _like(a_next, x)
    kept = jnp.sqrt((1 - a_next) / (1 - a))
    return kept * x + (jnp.sqrt(a_next) - jnp.sqrt(a) * kept) * clean


def dpm_step(
    x: jax.Array,
    clean: jax.Array,
    noise: jax.Array,
    a: jax.Array,
    a_next: jax.Array,
    *,
    last_clean: jax.Array | None = None,
    a_last: jax.Array | None = None,
) -> jax.Array:
    """Step of the SDE form of DPM-Solver++, of second order (2M) where the step before is given.

    The published formula in lambda = log(a / (1 - a)) / 2 is infinite at a = 0 and a_next = 1; written with
    e^(-2h) = a (1 - a_next) / ((1 - a) a_next), h the step in lambda, both limits are plain numbers.

    Args:
      x, clean: the state and its predicted x_0.
      noise: standard normal, of x's shape.
      a, a_next: levels before and after; a_next > a.
      last_clean, a_last: prediction and level of the step before; a_last < a.
    """
    a, a_next = _like(a, x), _like(a_next, x)
    decay = a * (1 - a_next) / ((1 - a) * a_next)
    estimate = clean
    if last_clean is not None and a_last is not None:
        b = _like(a_last, x)
        # Both logs are twice a difference in lambda; a last level of pure noise is infinitely far and counts nothing.
        ratio = jnp.where(b > 0, a * (1 - b) / ((1 - a) * jnp.where(b > 0, b, 1)), jnp.inf)
        weight = -jnp.log(decay) / (2 * jnp.log(ratio))
        estimate = (1 + weight) * clean - weight * last_clean
    kept = (1 - a_next) / (1 - a) * jnp.sqrt(a / a_next)
    return kept * x + (1 - decay) * jnp.sqrt(a_next) * estimate + jnp.sqrt((1 - a_next) * (1 - decay)) * noise


def clean_error(clean: jax.Array, predicted: jax.Array, a: jax.Array) -> jax.Array:
    """[...]: squared error of x_0 over 1 - a, which is that of v; mean over the axes that `a` does not have."""
    error = jnp.mean(jnp.square(predicted - clean), axis=tuple(range(a.ndim, clean.ndim)))
    return error / (1 - a)


def _like(a: jax.Array, x: jax.Array) -> jax.Array:
    """`a` with the trailing axes that it lacks of x."""
    return a.reshape(a.shape + (1,) * (x.ndim - a.ndim))
