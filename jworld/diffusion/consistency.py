"""Phased consistency models: one evaluation jumps to the lower edge of the phase that contains the time.

Times 0..999 are divided into phases. Within a phase the model maps every point of a trajectory to the point at the
phase's edge, the time just below the phase. Sources: phased consistency models (arXiv 2405.18407), latent consistency
models (arXiv 2310.04378); The Matrix `stage4/cogvideox/scheduler.py` for the edges and the sampler. The original has no
public trainer: the objective here is derived from its sampler.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jworld.diffusion import v_prediction
from jworld.diffusion.v_prediction import NUM_TIMESTEPS


class Coefficients(NamedTuple):
    """Coefficients of x at the edge = skip * x_t + out * x_0."""

    skip: jax.Array
    out: jax.Array


def sampling_timesteps(steps: int, *, solver_steps: int) -> np.ndarray:
    """Return [steps] int32, noisiest first: evenly chosen among the `solver_steps` times of the distilled solver."""
    solver = (NUM_TIMESTEPS // solver_steps) * np.arange(solver_steps, 0, -1) - 1
    chosen: np.ndarray = solver[np.floor(np.linspace(0, solver_steps, steps, endpoint=False)).astype(int)]
    return chosen.astype(np.int32)


def edge(timestep: jax.Array | np.ndarray, phases: int) -> jax.Array:
    """Return the time at the lower edge of each time's phase: one below the phase, and 0 for the first."""
    span = NUM_TIMESTEPS // phases
    return jnp.maximum(jnp.asarray(timestep) // span * span - 1, 0)


def coefficients(alphas: np.ndarray, timestep: jax.Array | np.ndarray, phases: int) -> Coefficients:
    """Return the coefficients of a DDIM step to the edge, for times of any shape."""
    a, b = v_prediction.at(alphas, timestep), v_prediction.at(alphas, edge(timestep, phases))
    skip = jnp.sqrt(1 - b) / jnp.sqrt(1 - a)
    return Coefficients(skip, jnp.sqrt(b) - jnp.sqrt(a) * skip)


def jump(x: jax.Array, v: jax.Array, alphas: np.ndarray, timestep: jax.Array | np.ndarray, phases: int) -> jax.Array:
    """Evaluate the consistency function: the state at the edge from x and the network's v.

    `timestep` has x's leading axes.
    """
    timestep = jnp.asarray(timestep)
    clean = v_prediction.clean_from_velocity(x, v, v_prediction.at(alphas, timestep))
    shape = timestep.shape + (1,) * (x.ndim - timestep.ndim)
    skip, out = (value.reshape(shape) for value in coefficients(alphas, timestep, phases))
    return skip * x + out * clean


def renoise(
    edge_state: jax.Array,
    noise: jax.Array,
    alphas: np.ndarray,
    timestep: jax.Array | np.ndarray,
    next_timestep: jax.Array | np.ndarray,
    phases: int,
) -> jax.Array:
    """Add noise to the state at the phase's edge, up to the sampler's next time; -1 is the end.

    An edge at time 0 counts as clean, as in the original: the output keeps the little noise of time 0.
    """
    low = edge(timestep, phases)
    ratio = v_prediction.at(alphas, next_timestep) / v_prediction.at(alphas, jnp.where(low == 0, -1, low))
    return v_prediction.add_noise(edge_state, noise, ratio)


def distance(online: jax.Array, target: jax.Array, kind: str, huber_c: float) -> jax.Array:
    """Return the scalar mean distance.

    `kind` is "huber" (pseudo-Huber with the constant `huber_c`, arXiv 2310.14189) or "l2".
    """
    squared = jnp.square(online - target)
    return jnp.mean(squared if kind == "l2" else jnp.sqrt(squared + huber_c**2) - huber_c)
