"""Training objectives of The Matrix' stages: v of whole clips, v of sliding windows, and jumps to the edges of phases.

Sources: The Matrix `stage{1,2,3}/training/trainer.py`. Stage 4 has no public trainer: see `consistency_loss`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jworld.diffusion import consistency, v_prediction, windows
from jworld.models.cogvideox.transformer import CogVideoXTransformer
from jworld.utils import ranges

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig(v_prediction.Schedule):
    """Values that every training objective has (`config.loss`): the noise schedule, and those of the windows.

    Attributes:
      groups: noise groups of a window.
    """

    groups: ranges.Steps = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_divides("groups", self.groups)


def check_divides(name: str, parts: int) -> None:
    """Raise a `ValueError` if the timesteps do not divide into so many parts."""
    if v_prediction.NUM_TIMESTEPS % parts:
        raise ValueError(f"{name} is {parts}, expected a divisor of {v_prediction.NUM_TIMESTEPS}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(ScheduleConfig):
    """Values of the objectives of the original's stages, and of consistency (`config.loss`).

    Attributes:
      kind: "clip" for v of clips with one timestep (stages 1 and 2), "windows" for v of sliding windows (stage 3),
        "consistency" for jumps to the edges of phases (stage 4).
      phases_per_group: parts of a group's range of timesteps, each of which stage 4 learns to cross in one jump.
      solver_steps: steps of the stage 4 teacher from pure noise to clean.
      guidance: smallest and largest guidance scale of the teacher; drawn uniformly per example.
      distance: distance between the ends of two jumps: "huber" (pseudo-Huber) or "l2".
      huber_c: constant c of the pseudo-Huber distance, above 0: distances well below it count as squares.
      target: model whose jump from the earlier point is the target: "student", or "ema" for its EMA, which
        `config.optimizer` must enable.
      teacher_dtype: dtype of the teacher's frozen weights.
      own_errors: share of windows whose noisy frames are made from the model's own prediction of them, while the
        recorded ones stay the target: it learns to correct what a stream hands on (error recycling, arXiv 2510.09212).
        Only for "windows"; above 0 it costs another forward pass. 0 in the original.
      sigma_floor: share of noise (0 to 1) below which the squared error of clean latents counts as much as there. The
        error of v is that of clean latents divided by the share of noise, so for a network that predicts clean latents
        rare low levels would outweigh all others (Min-SNR weighting, arXiv 2303.09556). As published (0), all errors
        of v count alike. Not for "consistency".
    """

    kind: Literal["clip", "windows", "consistency"] = "clip"
    phases_per_group: ranges.Steps = 1
    solver_steps: ranges.Steps = 40
    guidance: tuple[ranges.Guidance, ranges.Guidance] = (6.0, 6.0)
    distance: Literal["huber", "l2"] = "huber"
    huber_c: ranges.Positive = 1e-3
    target: Literal["student", "ema"] = "student"
    teacher_dtype: Literal["bfloat16", "float32"] = "float32"
    own_errors: ranges.Share = 0.0
    sigma_floor: ranges.Share = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.own_errors and self.kind != "windows":
            raise ValueError(f"own_errors is {self.own_errors} and kind {self.kind!r}, expected 0, or kind 'windows'")
        if self.sigma_floor and self.kind == "consistency":
            raise ValueError(f"sigma_floor is {self.sigma_floor} and kind 'consistency', expected 0")
        check_divides("groups * phases_per_group", self.phases)
        if v_prediction.NUM_TIMESTEPS % self.solver_steps or self.solver_steps < 2 * self.phases:
            raise ValueError(
                f"solver_steps is {self.solver_steps}, expected a divisor of {v_prediction.NUM_TIMESTEPS} with at "
                f"least two steps in each of the {self.phases} phases"
            )

    @property
    def phases(self) -> int:
        """Number of phases over all timesteps."""
        return self.groups * self.phases_per_group

    @property
    def stride(self) -> int:
        """Timesteps per step of the teacher."""
        return v_prediction.NUM_TIMESTEPS // self.solver_steps


class Example(NamedTuple):
    """Clean latents of a batch of clips, and their conditioning.

    Attributes:
      latents: clean latents [B, F, H, W, C].
      text: text states [B, L, text_dim], padding included.
      control: control vectors [B, F, control_dim], or None for a model without control.
    """

    latents: jax.Array
    text: jax.Array
    control: jax.Array | None


class Draws(NamedTuple):
    """All random numbers of a loss.

    Attributes:
      timestep: one per clip, [B] (stages 1 and 2), or one per frame, [B, F] (stages 3 and 4); 0 to 999.
      noise: standard normal [B, F, H, W, C].
      own: whether noisy frames are made from the model's prediction, bool [B]; None is False.
    """

    timestep: jax.Array
    noise: jax.Array
    own: jax.Array | None = None


def draw(key: jax.Array, shape: tuple[int, ...], cfg: ObjectiveConfig, level: jax.Array | None = None) -> Draws:
    """Draw timesteps and noise for latents of `shape` [B, F, H, W, C].

    The frames of a window are one context frame and `cfg.groups` groups of equal size. `level` sets the timestep as a
    share of all of them, from 0 to 1, or of those of a noise group.
    """
    time_key, noise_key = jax.random.split(key)
    batch, frames = shape[:2]
    if cfg.kind == "windows":
        timestep = windows.sample_timesteps(time_key, batch, cfg.groups, (frames - 1) // cfg.groups, level=level)
    elif level is not None:
        timestep = jnp.full((batch,), level * v_prediction.NUM_TIMESTEPS, jnp.int32)
    else:
        timestep = jax.random.randint(time_key, (batch,), 0, v_prediction.NUM_TIMESTEPS)
    own = None
    if cfg.own_errors > 0 and level is None:
        own = jax.random.bernoulli(jax.random.fold_in(key, 1), cfg.own_errors, (batch,))
    return Draws(timestep, jax.random.normal(noise_key, shape), own)


def example_of(batch: Batch) -> Example:
    """Return the example in a batch of `Matrix.batch_spec`."""
    return Example(batch["latent"].astype(jnp.float32), batch["text_states"], batch.get("control"))


def velocity_loss(
    model: CogVideoXTransformer, example: Example, draws: Draws, alphas: np.ndarray, *, sigma_floor: float = 0.0
) -> jax.Array:
    """Compute the loss of stages 1 to 3: the squared error of x_0 divided by 1 - a, which is the squared error of v.

    With timesteps per frame the first frame is the context frame and does not count. `ObjectiveConfig` explains
    `sigma_floor`.
    """
    seen = example
    if draws.own is not None:
        made = jax.lax.stop_gradient(predict(model, example, draws, alphas))
        seen = example._replace(latents=jnp.where(draws.own[:, None, None, None, None], made, example.latents))
    clean = predict(model, seen, draws, alphas)
    a = v_prediction.at(alphas, draws.timestep)
    error = v_prediction.clean_error(example.latents, clean, a, sigma_floor=sigma_floor)
    return jnp.mean(error if draws.timestep.ndim == 1 else error[:, 1:])


def predict(
    model: CogVideoXTransformer,
    example: Example,
    draws: Draws,
    alphas: np.ndarray,
    *,
    guidance: jax.Array | None = None,
) -> jax.Array:
    """Return the model's prediction of the clean latents from the noisy ones, [B, F, H, W, C] float32."""
    a = v_prediction.at(alphas, draws.timestep)
    noisy = v_prediction.add_noise(example.latents, draws.noise, a)
    embedded = None if guidance is None else embedded_guidance(guidance)
    v = model(noisy, example.text, draws.timestep, control=example.control, guidance=embedded)
    return v_prediction.clean_from_velocity(noisy, v, a)


class Distillation(NamedTuple):
    """Settings of a consistency distillation.

    Attributes:
      phases: number of phases of the 1000 timesteps.
      stride: timesteps between two points of a trajectory that the student must map to the same point.
      guidance: scale of the teacher's classifier-free guidance, a number or [B, 1, 1, 1, 1].
      distance: "huber" or "l2".
      huber_c: constant of the pseudo-Huber distance.
    """

    phases: int
    stride: int
    guidance: float | jax.Array
    distance: str = "huber"
    huber_c: float = 1e-3


class Trajectory(NamedTuple):
    """Two points of the teacher's trajectories and their timesteps, [B, F, ...] each."""

    noisy: jax.Array
    timestep: jax.Array
    earlier: jax.Array
    earlier_timestep: jax.Array


def teacher_step(
    teacher: CogVideoXTransformer,
    example: Example,
    null_text: jax.Array,
    draws: Draws,
    alphas: np.ndarray,
    how: Distillation,
) -> Trajectory:
    """Make noisy windows, and move them by `how.stride` timesteps along the ODE of the guided teacher.

    Args:
      teacher: the frozen teacher.
      example: clean windows.
      null_text: text states of the empty prompt, [B, L, text_dim].
      draws: timesteps and noise. The timestep of the context frame is 0, and it does not change. All other timesteps
        are at least `how.stride`, and no stride leaves its phase.
      alphas: [1000], of the noise schedule.
      how: settings of the distillation.
    """
    a = v_prediction.at(alphas, draws.timestep)
    noisy = v_prediction.add_noise(example.latents, draws.noise, a)
    earlier = jnp.maximum(draws.timestep - how.stride, 0)
    text = jnp.concatenate([null_text, example.text])
    x, timestep, control = jax.tree.map(lambda y: jnp.concatenate([y, y]), (noisy, draws.timestep, example.control))
    unconditional, conditional = jnp.split(teacher(x, text, timestep, control=control), 2)
    v = unconditional + how.guidance * (conditional - unconditional)
    clean = v_prediction.clean_from_velocity(noisy, v, a)
    reached = v_prediction.ddim_step(noisy, clean, a, v_prediction.at(alphas, earlier))
    is_given = jnp.arange(noisy.shape[1])[None, :, None, None, None] == 0
    return Trajectory(noisy, draws.timestep, jnp.where(is_given, noisy, reached), earlier)


def embedded_guidance(scale: jax.Array) -> jax.Array:
    """Return the input of the guidance embedding: the scale less 1, as in latent consistency models.

    Source: arXiv 2310.04378.
    """
    return scale - 1


def consistency_loss(
    student: CogVideoXTransformer,
    target: CogVideoXTransformer,
    example: Example,
    path: Trajectory,
    alphas: np.ndarray,
    how: Distillation,
    *,
    guidance: jax.Array | None = None,
) -> jax.Array:
    """Compute the loss of stage 4: both points of a trajectory must be mapped to the same edge of their phase.

    The original publishes the sampler of stage 4 but no trainer. This is phased consistency distillation (arXiv
    2405.18407) with the sampler's jump. A student that follows every trajectory exactly has loss zero.

    Args:
      student: the model that trains.
      target: the student or its EMA; no gradient flows through it.
      example: clean windows.
      path: two points of the teacher's trajectories.
      alphas: [1000], of the noise schedule.
      how: settings of the distillation.
      guidance: the teacher's guidance scales [B], for a student with a guidance embedding.
    """
    embedded = None if guidance is None else embedded_guidance(guidance)

    def jumped(model: CogVideoXTransformer, x: jax.Array, timestep: jax.Array) -> jax.Array:
        v = model(x, example.text, timestep, control=example.control, guidance=embedded)
        return consistency.jump(x, v, alphas, timestep, how.phases)[:, 1:]

    online = jumped(student, path.noisy, path.timestep)
    expected = jax.lax.stop_gradient(jumped(target, path.earlier, path.earlier_timestep))
    return consistency.distance(online, expected, how.distance, how.huber_c)
