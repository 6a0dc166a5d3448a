"""Phased consistency models: one evaluation jumps to the lower edge of the phase that the time lies in.

Times 0..999 are cut into phases; within a phase the model maps every point of a trajectory to the trajectory's point at
the phase's edge, the time just below it. Sources: phased consistency models (arXiv 2405.18407), latent consistency
models (arXiv 2310.04378); The Matrix `stage4/cogvideox/scheduler.py` for the edges and the sampler. The original has
no public trainer: the objective here is the one that its sampler is the solution of.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jworld.diffusion import v_prediction
from jworld.diffusion.v_prediction import NUM_TIMESTEPS

#: Of the pseudo-Huber distance (arXiv 2310.14189).
HUBER_C = 1e-3


class Coefficients(NamedTuple):
    """x at the edge = skip * x_t + out * x_0."""

    skip: jax.Array
    out: jax.Array


def sampling_timesteps(steps: int, *, solver_steps: int) -> np.ndarray:
    """[steps] int32, noisiest first: evenly chosen among the `solver_steps` times of the distilled solver."""
    solver = (NUM_TIMESTEPS // solver_steps) * np.arange(solver_steps, 0, -1) - 1
    return solver[np.floor(np.linspace(0, solver_steps, steps, endpoint=False)).astype(int)].astype(np.int32)


def edge(timestep: jax.Array | np.ndarray, phases: int) -> jax.Array:
    """The time at the lower edge of each time's phase: one below the phase, and 0 for the first."""
    span = NUM_TIMESTEPS // phases
    return jnp.maximum(jnp.asarray(timestep) // span * span - 1, 0)


def coefficients(alphas: np.ndarray, timestep: jax.Array | np.ndarray, phases: int) -> Coefficients:
    """Those of times of any shape: a DDIM step to the edge."""
    a, b = v_prediction.at(alphas, timestep), v_prediction.at(alphas, edge(timestep, phases))
    skip = jnp.sqrt(1 - b) / jnp.sqrt(1 - a)
    return Coefficients(skip, jnp.sqrt(b) - jnp.sqrt(a) * skip)


def jump(x: jax.Array, v: jax.Array, alphas: np.ndarray, timestep: jax.Array | np.ndarray, phases: int) -> jax.Array:
    """The consistency function: the state at the edge from x and the network's v; `timestep` has x's leading axes."""
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
    """From the edge of the phase up to the next time of the sampler; -1 stands for the end.

    An edge at time 0 counts as clean, as in the original: what is emitted has the little noise of time 0.
    """
    low = edge(timestep, phases)
    ratio = v_prediction.at(alphas, next_timestep) / v_prediction.at(alphas, jnp.where(low == 0, -1, low))
    return v_prediction.add_noise(edge_state, noise, ratio)


def distance(online: jax.Array, target: jax.Array, kind: str) -> jax.Array:
    """Scalar mean distance, `kind` "huber" (pseudo-Huber) or "l2"."""
    squared = jnp.square(online - target)
    return jnp.mean(squared if kind == "l2" else jnp.sqrt(squared + HUBER_C**2) - HUBER_C)
