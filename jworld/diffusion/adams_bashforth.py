"""The sampler of Cosmos-Predict2: second-order Adams-Bashforth in the logarithm of the noise level.

With lambda = -log sigma the path of a sample is dx/dlambda = clean(x) - x. A step solves it exactly for a clean
prediction that is linear in lambda, extrapolated from its last two values. This is an exponential integrator, as
DPM-Solver++ 2M (https://arxiv.org/abs/2211.01095). The first step assumes a constant prediction, which is Euler's step
in sigma.

Source: cosmos-predict2 `schedulers/rectified_flow_scheduler.py`, `functional/runge_kutta.py`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class State(NamedTuple):
    """Noisy video and the last prediction of the clean one, both [B, F, H, W, C]."""

    x: jax.Array
    clean: jax.Array


class Steps(NamedTuple):
    """Steps of the sampler: the noise levels [steps] at which the network is evaluated, and weights [steps, 3]."""

    levels: Any
    weights: Any


#: (noisy video [B, F, H, W, C], sigma [B]) -> prediction of the clean video, after classifier-free guidance.
Denoise = Callable[[jax.Array, jax.Array], jax.Array]


def noise_levels(steps: int, *, lowest: float = 0.002, highest: float = 80.0, order: float = 7.0) -> np.ndarray:
    """Return [steps + 1] float64 levels from highest to lowest, evenly spaced in their `order`-th root."""
    ramp = np.linspace(0.0, 1.0, steps + 1)
    first, last = highest ** (1 / order), lowest ** (1 / order)
    levels: np.ndarray = (first + ramp * (last - first)) ** order
    return levels


def step_weights(sigmas: np.ndarray) -> np.ndarray:
    """Return [steps, 3] float64 weights: of x, of its prediction and of the previous prediction, for each step."""
    lambdas = -np.log(sigmas)
    weights = [(sigmas[1] / sigmas[0], 1 - sigmas[1] / sigmas[0], 0.0)]
    for before, now, after in zip(lambdas[:-2], lambdas[1:-1], lambdas[2:], strict=True):
        step = after - now
        # phi_1 and phi_2 of exponential integrators at -step.
        one = -np.expm1(-step) / step
        two = (1 - one) / step
        previous = two * step / (before - now)
        weights.append((np.exp(-step), step * (one - previous), step * previous))
    return np.array(weights)


def start_noise(seed: int, *, frames: int, height: int, width: int, channels: int) -> np.ndarray:
    """Return [1, F, H, W, C] float32 standard normal noise: the numbers that the original draws for this seed."""
    noise = np.random.RandomState(seed).standard_normal((1, channels, frames, height, width))
    return np.moveaxis(noise.astype(np.float32), 1, -1)


def step(x: jax.Array, clean: jax.Array, previous: jax.Array, weights: Sequence[float] | jax.Array) -> jax.Array:
    """Return the next, less noisy x.

    `clean` and `previous` are the last two predictions, `weights` a row of `step_weights`.
    """
    return weights[0] * x + weights[1] * clean + weights[2] * previous


def all_steps(sigmas: np.ndarray) -> Steps:
    """Return the steps for levels [steps + 1] of `noise_levels`.

    After the last level the network is evaluated once more, at the lowest one. That prediction is the result.
    """
    weights = np.concatenate([step_weights(sigmas), [(0.0, 1.0, 0.0)]])
    return Steps(sigmas.astype(np.float32), weights.astype(np.float32))


def start(noise: jax.Array, sigmas: np.ndarray) -> State:
    """Return the state before the first step; `noise` [B, F, H, W, C] is standard normal."""
    x = jnp.float32(sigmas[0]) * noise
    return State(x, jnp.zeros_like(x))


def run(denoise: Denoise, state: State, steps: Steps) -> State:
    """Run some steps, as one loop in a compiled program; `denoise` predicts conditioning frames, too."""

    def body(state: State, row: Steps) -> tuple[State, None]:
        clean = denoise(state.x, jnp.full(state.x.shape[0], row.levels))
        return State(step(state.x, clean, state.clean, row.weights), clean), None

    state, _ = jax.lax.scan(body, state, Steps(*map(jnp.asarray, steps)))
    return state


def sample(denoise: Denoise, noise: jax.Array, sigmas: np.ndarray) -> jax.Array:
    """Sample a clean video from noise [B, F, H, W, C] with all steps of the levels `sigmas`."""
    return run(denoise, start(noise, sigmas), all_steps(sigmas)).x
