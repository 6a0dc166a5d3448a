"""Distribution matching distillation (DMD): samples of a student move to where a teacher finds them more likely.

Source: arXiv 2405.14867. A frozen network estimates the clean latents of noisy samples as the teacher's data would have
them, another one, the critic, as the student's own samples have them. The difference is the gradient of the student.
`training.score_losses` composes these functions for any system.
"""

import dataclasses
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jworld.diffusion import flow_matching
from jworld.utils import ranges

_Level = Annotated[float, ranges.Range(0, 1)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """Settings that every distribution matching distillation has (`config.loss`).

    Attributes:
      score_levels: range of the uniform noise levels (0 to 1, before the shift) at which scores are compared.
      shift: shift of these levels towards noise; 1 for none.
      teacher_dtype: dtype of the teacher's frozen weights.
    """

    score_levels: tuple[_Level, _Level] = (0.02, 0.98)
    shift: ranges.Shift = 5.0
    teacher_dtype: Literal["bfloat16", "float32"] = "float32"

    def __post_init__(self) -> None:
        ranges.check(self)
        if not 0 < self.score_levels[0] < self.score_levels[1]:
            raise ValueError(f"score_levels {self.score_levels} must be an increasing pair between 0 and 1")


class Draws(NamedTuple):
    """All random numbers of a loss.

    Attributes:
      noise: standard normal, in the shape of the student's samples [B, F, H, W, C].
      last_step: denoising step, int32, after which every sample ends: its prediction of clean latents.
      level: noise levels [B] of the scores, 0 to 1.
      score_noise: standard normal in the shape of `noise`.
    """

    noise: jax.Array
    last_step: jax.Array
    level: jax.Array
    score_noise: jax.Array


def draw(key: jax.Array, shape: tuple[int, ...], steps: int, cfg: ScoreConfig, level: jax.Array | None = None) -> Draws:
    """Draw the random numbers of a loss for samples of `shape` [B, F, H, W, C] with so many denoising steps.

    `level` [] replaces the noise levels of the scores.
    """
    noise_key, step_key, level_key, score_key = jax.random.split(key, 4)
    low, high = cfg.score_levels
    drawn = flow_matching.shifted(jax.random.uniform(level_key, shape[:1], minval=low, maxval=high), cfg.shift)
    return Draws(
        noise=jax.random.normal(noise_key, shape),
        last_step=jax.random.randint(step_key, (), 0, steps),
        level=drawn if level is None else jnp.full_like(drawn, level),
        score_noise=jax.random.normal(score_key, shape),
    )


def gradient(samples: jax.Array, real: jax.Array, fake: jax.Array) -> jax.Array:
    """Return the gradient of the loss at the student's samples, all [B, ...].

    Args:
      samples: clean samples of the student.
      real: the teacher's prediction of them from noisy ones.
      fake: the critic's prediction.

    Returns:
      The difference of the predictions, divided by the sample's mean distance from the teacher's; 0 where that is not
      a number.
    """
    axes = tuple(range(1, samples.ndim))
    distance = jnp.mean(jnp.abs(samples - real), axis=axes, keepdims=True)
    return jnp.nan_to_num((fake - real) / distance, nan=0.0, posinf=0.0, neginf=0.0)


def loss(samples: jax.Array, slope: jax.Array) -> jax.Array:
    """Return a scalar whose gradient at `samples` is `slope` divided by the number of elements."""
    target = jax.lax.stop_gradient(samples - slope)
    return 0.5 * jnp.mean(jnp.square(samples - target))


def critic_loss(predicted: jax.Array, target: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """Return the mean squared error [] of a critic's predictions [B, ...]; `weight` [B] is that of each sample."""
    error = jnp.mean(jnp.square(predicted - target), axis=tuple(range(1, target.ndim)))
    return jnp.mean(error if weight is None else error * weight)
