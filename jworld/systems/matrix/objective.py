"""What each stage of The Matrix learns: v of whole clips, of sliding windows, and jumps to the edges of phases.

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

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What is learnt (`config.loss`).

    Attributes:
      kind: "clip", v of clips that have one time (stages 1 and 2); "windows", v of sliding windows (stage 3);
        "consistency", jumps to the edges of phases (stage 4).
      snr_shift: divides the ratio of signal and noise at every time; CogVideoX-2B has 3, and 1 is none. Latents that
        shine through most noise want more.
      groups: noise groups of a window.
      phases_per_group: parts of a group's range of times, each of which stage 4 learns to cross in one jump.
      solver_steps: steps that the teacher of stage 4 takes from noise to clean.
      guidance: least and most of the teacher's scale of guidance on the text, drawn evenly per example.
      distance: "huber" (pseudo-Huber) or "l2", between the ends of two jumps.
      target: whose jump from the later point a student's must meet: its own ("student") or that of its averaged weights
        ("average", which `config.optimizer` must keep).
      teacher_dtype: of the teacher's frozen weights.
    """

    kind: Literal["clip", "windows", "consistency"] = "clip"
    snr_shift: float = 3.0
    groups: int = 4
    phases_per_group: int = 1
    solver_steps: int = 40
    guidance: tuple[float, float] = (6.0, 6.0)
    distance: Literal["huber", "l2"] = "huber"
    target: Literal["student", "average"] = "student"
    teacher_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.snr_shift <= 0:
            raise ValueError(f"snr_shift is {self.snr_shift}, expected a number above 0")
        for name, parts in (("groups", self.groups), ("groups * phases_per_group", self.phases)):
            if v_prediction.NUM_TIMESTEPS % parts:
                raise ValueError(f"{name} is {parts}, expected a divisor of {v_prediction.NUM_TIMESTEPS}")
        if v_prediction.NUM_TIMESTEPS % self.solver_steps or self.solver_steps < 2 * self.phases:
            raise ValueError(
                f"solver_steps is {self.solver_steps}, expected a divisor of {v_prediction.NUM_TIMESTEPS} of which "
                f"each of the {self.phases} phases has two at least"
            )

    @property
    def phases(self) -> int:
        """Of all times."""
        return self.groups * self.phases_per_group

    @property
    def stride(self) -> int:
        """Times that the teacher crosses in a step."""
        return v_prediction.NUM_TIMESTEPS // self.solver_steps


class Example(NamedTuple):
    """What a model is told of a batch of clips.

    Attributes:
      latents: [B, F, H, W, C] clean.
      text: [B, L, text_dim] states, padding included.
      control: [B, F, control_dim], or None for a model without control.
    """

    latents: jax.Array
    text: jax.Array
    control: jax.Array | None


class Draws(NamedTuple):
    """Everything random in a loss.

    Attributes:
      timestep: [B] one time per clip (stages 1 and 2) or [B, F] one per frame (3 and 4), 0..999.
      noise: [B, F, H, W, C] standard normal.
    """

    timestep: jax.Array
    noise: jax.Array


def draw(key: jax.Array, shape: tuple[int, ...], cfg: ObjectiveConfig) -> Draws:
    """For latents of `shape` [B, F, H, W, C]; the frames of windows are one given and `cfg.groups` of equal size."""
    time_key, noise_key = jax.random.split(key)
    batch, frames = shape[:2]
    if cfg.kind == "windows":
        timestep = windows.sample_timesteps(time_key, batch, cfg.groups, (frames - 1) // cfg.groups)
    else:
        timestep = jax.random.randint(time_key, (batch,), 0, v_prediction.NUM_TIMESTEPS)
    return Draws(timestep, jax.random.normal(noise_key, shape))


def example_of(batch: Batch) -> Example:
    """A batch as `Matrix.batch_spec` describes it."""
    return Example(batch["latent"].astype(jnp.float32), batch["text_states"], batch.get("control"))


def velocity_loss(model: CogVideoXTransformer, example: Example, draws: Draws, alphas: np.ndarray) -> jax.Array:
    """Stages 1 to 3: the scalar squared error of x_0 over 1 - a, which is that of v.

    With times per frame the first frame is the given one and does not count.
    """
    a = v_prediction.at(alphas, draws.timestep)
    noisy = v_prediction.add_noise(example.latents, draws.noise, a)
    v = model(noisy, example.text, draws.timestep, control=example.control)
    error = v_prediction.clean_error(example.latents, v_prediction.clean_from_velocity(noisy, v, a), a)
    return jnp.mean(error if draws.timestep.ndim == 1 else error[:, 1:])


class Distillation(NamedTuple):
    """How a consistency model is taught.

    Attributes:
      phases: of the 1000 times.
      stride: times between the two points of a trajectory that the student must map to one.
      guidance: scale of the teacher's classifier-free guidance, a number or [B, 1, 1, 1, 1].
      distance: "huber" or "l2".
    """

    phases: int
    stride: int
    guidance: float | jax.Array
    distance: str = "huber"


class Trajectory(NamedTuple):
    """Two points of the teacher's trajectories and their times, [B, F, ...] each."""

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
    """Noisy windows, and where the guided teacher's ODE leads them `how.stride` times on.

    Args:
      null_text: [B, L, text_dim] states of the empty prompt.
      draws: the first frame's time is 0: it is given and stays as it is; all others are at `how.stride` or later, and
        no stride leaves its phase.
    """
    a = v_prediction.at(alphas, draws.timestep)
    noisy = v_prediction.add_noise(example.latents, draws.noise, a)
    earlier = jnp.maximum(draws.timestep - how.stride, 0)
    text = jnp.concatenate([null_text, example.text])
    x, timestep, control = jax.tree.map(lambda y: jnp.concatenate([y, y]), (noisy, draws.timestep, example.control))
    without, told = jnp.split(teacher(x, text, timestep, control=control), 2)
    v = without + how.guidance * (told - without)
    clean = v_prediction.clean_from_velocity(noisy, v, a)
    reached = v_prediction.ddim_step(noisy, clean, a, v_prediction.at(alphas, earlier))
    is_given = jnp.arange(noisy.shape[1])[None, :, None, None, None] == 0
    return Trajectory(noisy, draws.timestep, jnp.where(is_given, noisy, reached), earlier)


def embedded_guidance(scale: jax.Array) -> jax.Array:
    """What the guidance embedding is of: the scale less one, as in latent consistency models (arXiv 2310.04378)."""
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
    """Stage 4: both points of a trajectory must be mapped to one point at the edge of their phase.

    The original publishes the sampler of stage 4 and no trainer. This is phased consistency distillation
    (arXiv 2405.18407) with the sampler's own jump; an oracle that knows every trajectory has loss zero.

    Args:
      target: the student itself or an average of it; no gradient passes it.
      guidance: [B] the teacher's guidance scale, for a student with a guidance embedding.
    """
    embedded = None if guidance is None else embedded_guidance(guidance)

    def jumped(model: CogVideoXTransformer, x: jax.Array, timestep: jax.Array) -> jax.Array:
        v = model(x, example.text, timestep, control=example.control, guidance=embedded)
        return consistency.jump(x, v, alphas, timestep, how.phases)[:, 1:]

    online = jumped(student, path.noisy, path.timestep)
    wanted = jax.lax.stop_gradient(jumped(target, path.earlier, path.earlier_timestep))
    return consistency.distance(online, wanted, how.distance)
