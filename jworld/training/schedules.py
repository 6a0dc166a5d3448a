"""Schedules that optax lacks: cycles of warm-up and decay, and the decay of a power-law EMA."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Cycle(NamedTuple):
    """Warm-up from `start` to `peak` over `warmup` updates, and decay to `end` at update `length`."""

    warmup: int
    length: int
    start: float
    peak: float
    end: float


def cycles(parts: Sequence[Cycle], shape: Literal["linear", "cosine"] = "linear") -> Callable[..., jax.Array]:
    """Chain cycles as a function of the number of updates; after the last one its end value stays.

    The last update of a cycle comes before the first of the next: a cycle of 50 ends at 50, and the next one begins at
    51 with its own update 1.

    Source: cosmos-predict2, `LambdaLinearScheduler` and `LambdaWarmUpCosineScheduler`.
    """

    def value(count: jax.Array | int) -> jax.Array:
        result: jax.Array = jnp.float32(parts[-1].end)
        begin = sum(cycle.length for cycle in parts)
        for cycle in reversed(parts):
            finish, begin = begin, begin - cycle.length
            own = (jnp.asarray(count) - begin).astype(jnp.float32)
            rising = cycle.start + (cycle.peak - cycle.start) * own / max(cycle.warmup, 1)
            left = 1 - (own - cycle.warmup) / (cycle.length - cycle.warmup)
            if shape == "cosine":
                left = (1 - jnp.cos(jnp.pi * left)) / 2
            falling = cycle.end + (cycle.peak - cycle.end) * left
            inside = jnp.where(own < cycle.warmup, rising, falling)
            result = jnp.where(jnp.asarray(count) <= finish, inside, result)
        return result

    return value


def power_exponent(rate: float) -> float:
    """Return the exponent of a power-law EMA whose profile has the standard deviation `rate`, as a share of training.

    Source: EDM2, https://arxiv.org/abs/2312.02696, algorithm 2: the largest root of a cubic.
    """
    roots = np.roots([1.0, 7.0, 16.0 - rate**-2, 12.0 - rate**-2])
    return float(np.max(roots.real))


def power_decay(exponent: float, updates: jax.Array | int) -> jax.Array:
    """Return the decay of a power-law EMA after `updates` updates: (1 - 1/(n + 1))^(exponent + 1).

    Zero at the first update: the EMA begins with the weights after it.
    """
    count = jnp.asarray(updates, jnp.float32)
    return (count / (count + 1)) ** (exponent + 1)
