"""Shortcut training: the network receives the size of its denoising step, and learns to take large ones from itself.

Most examples train flow matching, which is a step of size 0. For the others two steps of the network, without a
gradient, show where one of double size must lead. No second network is needed. Chunks have the context of consistency
distillation. Sources: shortcut models (arXiv 2410.12557); Dreamer 4 (arXiv 2509.24527), which trains a world model so.
"""

import dataclasses
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jworld.diffusion import flow_matching
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import HunyuanTransformer
from jworld.parallel import axes
from jworld.systems.worldplay import distillation, objective
from jworld.systems.worldplay.distillation import Clip
from jworld.utils import ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShortcutConfig(distillation.ContextConfig, objective.TimesConfig):
    """Settings of shortcut training (`config.loss`); `config.model.step_sizes` must be on.

    Attributes:
      kind: "shortcut".
      finest: sampling steps, a power of two, whose steps are so small that flow matching gives them. Schedules of half
        as many steps, a quarter and so on down to one are learned from each other.
      consistent: one example of so many is trained for self-consistency, the others for flow matching.
    """

    kind: Literal["shortcut"] = "shortcut"
    finest: Annotated[int, ranges.Range(2, 512)] = 64
    consistent: Annotated[int, ranges.Range(1, 1024)] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.finest.bit_count() != 1:
            raise ValueError(f"finest is {self.finest}, expected a power of two")


class Draws(NamedTuple):
    """All random numbers of a loss.

    Attributes:
      u: times before the shift of flow matching, [B] in [0, 1).
      steps: number of equal steps before the shift, [B] int32, of the schedule to which a large step belongs.
      step: which of them it is, [B] int32, 0 from pure noise.
      offset: self-consistency trains the rows offset, offset + `consistent`, ...; int32.
      window: of the chunk and its context.
    """

    u: jax.Array
    steps: jax.Array
    step: jax.Array
    offset: jax.Array
    window: distillation.WindowDraws


class Inputs(NamedTuple):
    """Inputs of the network apart from times and sizes, with the same rows: what it attends to, and the noisy chunk."""

    text: TextInputs
    image: jax.Array
    context: Clip
    chunk: Clip
    context_time: jax.Array


def draw(
    key: jax.Array, shape: tuple[int, ...], chunk_frames: int, cfg: ShortcutConfig, *, context_time: float
) -> Draws:
    """Draw the random numbers of a loss of windows of `shape` [B, F, H, W, C]; see `distillation.draw_window`."""
    time_key, schedule_key, step_key, offset_key, window_key = jax.random.split(key, 5)
    # A schedule has at most half of the finest steps: two of those make one of its own.
    steps = 2 ** jax.random.randint(schedule_key, shape[:1], 0, cfg.finest.bit_length() - 1)
    return Draws(
        u=cfg.draw(time_key, shape[:1]),
        steps=steps,
        step=jax.random.randint(step_key, shape[:1], 0, steps),
        offset=jax.random.randint(offset_key, (), 0, cfg.consistent),
        window=distillation.draw_window(window_key, shape, chunk_frames, cfg, context_time=context_time),
    )


def loss(
    model: HunyuanTransformer, batch: objective.Batch, draws: Draws, cfg: ShortcutConfig, *, chunk_frames: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the loss, a float32 scalar, and the mean of its terms of self-consistency as `self_consistency`.

    The weighted squared error of the velocity is averaged over all examples; see `TimesConfig.sigma_floor`.

    Args:
      model: the network, which has the input of step sizes.
      batch: arrays of `WorldPlay.batch_spec`.
      draws: the random numbers.
      cfg: the settings.
      chunk_frames: latent frames per chunk.
    """
    rows = len(draws.u)
    is_consistent = jnp.arange(rows) % cfg.consistent == draws.offset
    # Noise levels before, halfway through and after the large step; all are one for flow matching.
    size = jnp.where(is_consistent, 1 / draws.steps, 0)
    start = jnp.where(is_consistent, 1 - draws.step * size, draws.u)
    levels = flow_matching.shifted(start - jnp.arange(3)[:, None] / 2 * size, cfg.shift)
    inputs, straight = _inputs(batch, draws.window, levels[0], chunk_frames)
    predicted = _velocity(model, inputs, levels[0], levels[0] - levels[2])
    two = _two_steps(model, inputs, levels, 2 * draws.steps == cfg.finest, draws.offset, cfg.consistent)
    error = _error(predicted, jnp.where(_wide(is_consistent), two, straight))
    error *= flow_matching.error_weights(levels[0], cfg.sigma_floor)
    own = jnp.sum(error * is_consistent) / jnp.maximum(jnp.sum(is_consistent), 1)
    return jnp.mean(error), {"self_consistency": own}


def flow_loss(
    model: HunyuanTransformer, batch: objective.Batch, window: distillation.WindowDraws, level: jax.Array, size: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the mean squared error of the velocity at the noise levels [B], with steps of size 0."""
    inputs, straight = _inputs(batch, window, level, size)
    return jnp.mean(_error(_velocity(model, inputs, level, jnp.zeros_like(level)), straight)), {}


def _inputs(
    batch: objective.Batch, window: distillation.WindowDraws, level: jax.Array, chunk_frames: int
) -> tuple[Inputs, jax.Array]:
    """Return the inputs of the network at the noise levels [B], and the velocity of the straight path."""
    context, chunk = distillation.drawn_window(batch, window, chunk_frames)
    noisy = chunk._replace(latents=flow_matching.add_noise(chunk.latents, window.noise, _wide(level)))
    inputs = Inputs(objective.text_inputs(batch), batch["image_cond"], context, noisy, window.context.time)
    return inputs, window.noise - chunk.latents


def _error(predicted: jax.Array, target: jax.Array) -> jax.Array:
    """Return the mean squared error [B]."""
    return jnp.mean(jnp.square(predicted - target), axis=(1, 2, 3, 4))


def _two_steps(
    model: HunyuanTransformer,
    inputs: Inputs,
    levels: jax.Array,
    are_finest: jax.Array,
    offset: jax.Array,
    every: int,
) -> jax.Array:
    """Return the mean velocity [B, f, H, W, C] of two steps in succession, without gradients.

    Only the rows offset, offset + every, ... are as described; others are those of such a row, or arbitrary.

    Args:
      model: the network.
      inputs: before the first step.
      levels: noise levels [3, B] before, between and after the steps.
      are_finest: whether the steps count as steps of size 0, bool [B].
      offset: int32.
      every: see above.
    """
    # Other rows are left out if all devices can compute as many of the remaining ones.
    taken = every if len(are_finest) % every == 0 and axes.divides(len(are_finest) // every, "batch") else 1

    def part(x: jax.Array) -> jax.Array:
        grouped = x.reshape(-1, taken, *x.shape[1:])
        rows: jax.Array = jax.lax.dynamic_index_in_dim(grouped, jnp.minimum(offset, taken - 1), axis=1, keepdims=False)
        return rows

    def step(x: jax.Array, before: jax.Array, after: jax.Array) -> jax.Array:
        size = jnp.where(are_finest, 0, before - after)
        predicted = _velocity(model, inputs._replace(chunk=inputs.chunk._replace(latents=x)), before, size)
        return flow_matching.euler_step(x, predicted, _wide(before), _wide(after))

    are_finest, levels = part(are_finest), jax.vmap(part)(levels)
    inputs = jax.tree.map(part, inputs)
    noisy = inputs.chunk.latents
    reached = step(step(noisy, levels[0], levels[1]), levels[1], levels[2])
    length = levels[0] - levels[2]
    mean = (noisy - reached) / _wide(jnp.where(length > 0, length, 1))
    return jax.lax.stop_gradient(jnp.repeat(mean, taken, axis=0))


def _velocity(model: HunyuanTransformer, inputs: Inputs, sigma: jax.Array, size: jax.Array) -> jax.Array:
    """Predict the mean velocity of a step of the size [B] from the noise level [B], both 0 to 1."""
    times: dict[str, Any] = {
        "time": flow_matching.NUM_TIMESTEPS * sigma,
        "step_size": flow_matching.NUM_TIMESTEPS * size,
        "context_time": inputs.context_time,
    }
    return distillation.velocity(model, inputs.text, inputs.image, inputs.context, inputs.chunk, **times)


def _wide(x: jax.Array) -> jax.Array:
    """Return [B] as [B, 1, 1, 1, 1]."""
    return x[:, None, None, None, None]
