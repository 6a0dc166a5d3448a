"""Variance-preserving diffusion that predicts v: x_t = sqrt(a) x_0 + sqrt(1 - a) noise.

a is the cumulative product of alphas at time t in 0..999, one number per sample or per frame. Every function takes `a`
with the leading axes of the arrays, so windows whose frames have different times need no separate code. Sources:
progressive distillation (arXiv 2202.00512) for v, DDIM (arXiv 2010.02502), DPM-Solver++ (arXiv 2211.01095), zero
terminal SNR (arXiv 2305.08891), CogVideoX (arXiv 2408.06072) for the shift.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jworld.utils import ranges

NUM_TIMESTEPS = 1000
BETA_SCHEDULES = ("scaled_linear", "linear")


def alphas_cumprod(
    *,
    beta_start: float = 0.00085,
    beta_end: float = 0.012,
    beta_schedule: str = "scaled_linear",
    snr_shift: float = 3.0,
    zero_terminal_snr: bool = True,
) -> np.ndarray:
    """Return [1000] float64, from almost 1 down to exactly 0; by default the schedule of CogVideoX-2B.

    Args:
      beta_start, beta_end: first and last beta.
      beta_schedule: "scaled_linear" if the square roots of the betas are evenly spaced, "linear" if the betas are.
      snr_shift: divisor of the signal-to-noise ratio at every time.
      zero_terminal_snr: rescale, after the shift, so that the last value is 0.

    Raises:
      ValueError: there is no such `beta_schedule`.
    """
    match beta_schedule:
        case "scaled_linear":
            betas = np.linspace(beta_start**0.5, beta_end**0.5, NUM_TIMESTEPS) ** 2
        case "linear":
            betas = np.linspace(beta_start, beta_end, NUM_TIMESTEPS)
        case _:
            raise ValueError(f"beta_schedule is {beta_schedule!r}, expected {' or '.join(BETA_SCHEDULES)}")
    alphas = np.cumprod(1 - betas)
    alphas = alphas / (snr_shift + (1 - snr_shift) * alphas)
    if not zero_terminal_snr:
        return alphas
    root = np.sqrt(alphas)
    rescaled: np.ndarray = np.square((root - root[-1]) * root[0] / (root[0] - root[-1]))
    return rescaled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """A noise schedule; the defaults are that of CogVideoX-2B.

    Attributes:
      snr_shift: divisor of the signal-to-noise ratio at every timestep: 3 for CogVideoX-2B, 1 for none. Latents that
        remain visible under strong noise need a larger one.
      beta_start, beta_end: first and last beta of the noise schedule.
      beta_schedule: "scaled_linear" for betas with evenly spaced square roots, "linear" for evenly spaced betas.
      zero_terminal_snr: rescale the noise schedule so that the last timestep is pure noise.
    """

    snr_shift: ranges.Positive = 3.0
    beta_start: ranges.ShareAboveZero = 0.00085
    beta_end: ranges.ShareAboveZero = 0.012
    beta_schedule: Literal["scaled_linear", "linear"] = "scaled_linear"
    zero_terminal_snr: bool = True

    def __post_init__(self) -> None:
        ranges.check(self)
        if self.beta_start > self.beta_end:
            raise ValueError(
                f"beta_start is {self.beta_start} and beta_end {self.beta_end}, expected the smaller one first"
            )

    @property
    def schedule(self) -> "Schedule":
        """The noise schedule alone, without what a subclass adds."""
        return Schedule(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Schedule)})

    def alphas_cumprod(self) -> np.ndarray:
        """Return the noise schedule, see `alphas_cumprod`."""
        return alphas_cumprod(
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            beta_schedule=self.beta_schedule,
            snr_shift=self.snr_shift,
            zero_terminal_snr=self.zero_terminal_snr,
        )


def at(alphas: np.ndarray, timestep: jax.Array | np.ndarray) -> jax.Array:
    """Return a at integer times of any shape, float32; 1 before time 0."""
    # Not bfloat16, as in the original: 1 - a of clean frames would then be rounding noise.
    table = jnp.asarray(alphas, jnp.float32)
    return jnp.where(timestep < 0, 1.0, table[jnp.maximum(timestep, 0)])


def spaced_timesteps(steps: int, spacing: str) -> np.ndarray:
    """Return [steps] int32 times of a sampler, noisiest first; `spacing` is "trailing", "linspace" or "leading".

    The names are those of the published scheduler (arXiv 2305.08891, table 2).
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
    """Return x_t, in float32."""
    a = _like(a, clean)
    return jnp.sqrt(a) * clean + jnp.sqrt(1 - a) * noise


def velocity(clean: jax.Array, noise: jax.Array, a: jax.Array) -> jax.Array:
    """Return v = sqrt(a) noise - sqrt(1 - a) x_0, the network's target."""
    a = _like(a, clean)
    return jnp.sqrt(a) * noise - jnp.sqrt(1 - a) * clean


def clean_from_velocity(x: jax.Array, v: jax.Array, a: jax.Array) -> jax.Array:
    """Return x_0 = sqrt(a) x_t - sqrt(1 - a) v."""
    a = _like(a, x)
    return jnp.sqrt(a) * x - jnp.sqrt(1 - a) * v


def velocity_from_clean(x: jax.Array, clean: jax.Array, a: jax.Array) -> jax.Array:
    """Return v = (sqrt(a) x_t - x_0) / sqrt(1 - a), for a < 1."""
    a = _like(a, x)
    return (jnp.sqrt(a) * x - clean) / jnp.sqrt(1 - a)


def ddim_step(x: jax.Array, clean: jax.Array, a: jax.Array, a_next: jax.Array) -> jax.Array:
    """Take a deterministic step from the level `a` to the less noisy `a_next`."""
    a, a_next = _like(a, x), _like(a_next, x)
    skip = jnp.sqrt((1 - a_next) / (1 - a))
    return skip * x + (jnp.sqrt(a_next) - jnp.sqrt(a) * skip) * clean


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
    """Take a step of the SDE form of DPM-Solver++: second order (2M) if the previous prediction is given, else first.

    The published formula in lambda = log(a / (1 - a)) / 2 is infinite at a = 0 and a_next = 1. Written with e^(-2h) = a
    (1 - a_next) / ((1 - a) a_next), h the step in lambda, both limits are finite.

    Args:
      x, clean: the state and its predicted x_0.
      noise: standard normal, of x's shape.
      a, a_next: levels before and after; a_next > a.
      last_clean, a_last: prediction and level of the previous step; a_last < a.
    """
    a, a_next = _like(a, x), _like(a_next, x)
    decay = a * (1 - a_next) / ((1 - a) * a_next)
    estimate = clean
    if last_clean is not None and a_last is not None:
        b = _like(a_last, x)
        # Both logs are twice a difference in lambda. A last level of pure noise is infinitely far and has weight 0.
        ratio = jnp.where(b > 0, a * (1 - b) / ((1 - a) * jnp.where(b > 0, b, 1)), jnp.inf)
        weight = -jnp.log(decay) / (2 * jnp.log(ratio))
        estimate = (1 + weight) * clean - weight * last_clean
    skip = (1 - a_next) / (1 - a) * jnp.sqrt(a / a_next)
    return skip * x + (1 - decay) * jnp.sqrt(a_next) * estimate + jnp.sqrt((1 - a_next) * (1 - decay)) * noise


def clean_error(clean: jax.Array, predicted: jax.Array, a: jax.Array, *, sigma_floor: float = 0.0) -> jax.Array:
    """Return the squared error of x_0 over 1 - a, which equals that of v; the mean over the axes that `a` lacks.

    sqrt(1 - a), the share of noise, counts as at least `sigma_floor`.
    """
    error = jnp.mean(jnp.square(predicted - clean), axis=tuple(range(a.ndim, clean.ndim)))
    return error / jnp.maximum(1 - a, sigma_floor**2)


def _like(a: jax.Array, x: jax.Array) -> jax.Array:
    """Append axes to `a` so that it broadcasts against x."""
    return a.reshape(a.shape + (1,) * (x.ndim - a.ndim))
