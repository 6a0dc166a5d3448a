"""Sampler of a distilled flow-matching model: predict the clean video, add the noise again at a lower level, repeat.

x_t = (1 - t) * clean + t * noise. The last prediction is the sample. All steps have the noise of the start, so that a
sample depends on one array of noise, as in the published few-step model of Cosmos-Predict2.5
(`Video2WorldModelDistillDMD2TrigFlow`); DMD2 (arXiv 2405.14867) draws other noise at every step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jworld.diffusion import flow_matching


class State(NamedTuple):
    """Noisy video, after the last step the sample, and the noise; both [B, F, H, W, C]."""

    x: jax.Array
    noise: jax.Array


class Steps(NamedTuple):
    """Noise levels before and after every step, [steps] each; the last level is 0."""

    level: Any
    following: Any


#: (noisy video [B, F, H, W, C], level []) -> prediction of the clean video.
Denoise = Callable[[jax.Array, jax.Array], jax.Array]


def all_steps(num_steps: int, shift: float) -> Steps:
    """Return the steps, from pure noise: levels that are evenly spaced before the shift."""
    # In numpy, because a program that is being traced has no values.
    levels = np.asarray(flow_matching.shifted(np.linspace(1.0, 0.0, num_steps + 1), shift), np.float32)
    return Steps(levels[:-1], levels[1:])


def start(noise: jax.Array) -> State:
    """Return the state before the first step; `noise` [B, F, H, W, C] is standard normal."""
    return State(noise, noise)


def step(denoise: Denoise, state: State, level: jax.Array, following: jax.Array) -> State:
    """Run one step between two noise levels."""
    clean = denoise(state.x, level)
    return state._replace(x=flow_matching.add_noise(clean, state.noise, following))


def run(denoise: Denoise, state: State, steps: Steps) -> State:
    """Run some steps, as one loop in a compiled program; `denoise` predicts conditioning frames, too."""

    def body(state: State, row: Steps) -> tuple[State, None]:
        return step(denoise, state, row.level, row.following), None

    state, _ = jax.lax.scan(body, state, Steps(*map(jnp.asarray, steps)))
    return state


def run_until(denoise: Denoise, noise: jax.Array, steps: Steps, last: jax.Array) -> jax.Array:
    """Return the noisy video before step `last`, an int32 scalar that a compiled program may compute."""
    levels, following = map(jnp.asarray, steps)

    def body(number: jax.Array, state: State) -> State:
        return step(denoise, state, levels[number], following[number])

    state: State = jax.lax.fori_loop(0, last, body, start(noise))
    return state.x
