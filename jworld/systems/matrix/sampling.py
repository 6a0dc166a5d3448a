"""Sampling of The Matrix: whole clips (stages 1 and 2), and the endless stream of windows (stages 3 and 4).

Sources: The Matrix `stage2/cogvideox/pipeline.py`, `stage3/cogvideox/pipeline_streaming.py`, and the same of stage 4.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jworld.diffusion import consistency, v_prediction, windows
from jworld.models.cogvideox.transformer import CogVideoXTransformer
from jworld.systems.matrix import objective

SOLVERS = ("ddim", "dpm", "consistency")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How latents are sampled (`config.sample.rollout`).

    Attributes:
      mode: "clip" makes whole clips of a caption, "stream" an endless video, window by window.
      solver: "ddim", "dpm" (stages 1 to 3) or "consistency" (stage 4).
      num_steps: evaluations that a frame passes from pure noise to clean.
      spacing: of the times, see `v_prediction.spaced_timesteps`; the consistency solver has its own.
      guidance: scale of classifier-free guidance on the text; 1 is none.
      control_guidance: the same on the control, against no control at all; the original has none.
      guidance_embedding_scale: input of a model with a guidance embedding; it replaces guidance on the text.
      dynamic_guidance: the scale grows from 1 over a clip's steps, by the original's formula.
      groups: noise groups of a window.
      window_frames: latent frames of a group: a window emits so many.
      solver_steps: steps of the solver that a consistency model was distilled from.
      phases_per_group: phases of a consistency model in a group's range of times.
    """

    mode: Literal["clip", "stream"] = "clip"
    solver: str = "dpm"
    num_steps: int = 20
    spacing: str = "trailing"
    guidance: float = 6.0
    control_guidance: float = 1.0
    guidance_embedding_scale: float = 6.0
    dynamic_guidance: bool = False
    groups: int = 4
    window_frames: int = 4
    solver_steps: int = 40
    phases_per_group: int = 1

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver is {self.solver!r}, must be one of {', '.join(SOLVERS)}")
        if self.mode == "clip" and self.solver == "consistency":
            raise ValueError("solver is 'consistency', which makes streams: set mode to 'stream'")
        if self.mode == "stream" and self.num_steps % self.groups:
            raise ValueError(f"num_steps is {self.num_steps}, expected a multiple of the {self.groups} groups")

    @property
    def phases(self) -> int:
        return self.groups * self.phases_per_group

    def timesteps(self) -> np.ndarray:
        """[num_steps] int32, noisiest first."""
        if self.solver == "consistency":
            return consistency.sampling_timesteps(self.num_steps, solver_steps=self.solver_steps)
        return v_prediction.spaced_timesteps(self.num_steps, self.spacing)


def dynamic_scale(guidance: float, num_steps: int, timestep: int) -> float:
    """1 + g (1 - cos(pi ((n - t) / n)^5)) / 2 with the number of steps n and a time t in 0..999, as in the original."""
    return 1 + guidance * (1 - math.cos(math.pi * ((num_steps - timestep) / num_steps) ** 5.0)) / 2


class Conditions(NamedTuple):
    """What every evaluation of one clip is told.

    Attributes:
      text: [1, L, Dt], or [2, L, Dt] with the negative prompt first for guidance.
      control: [1, F, control_dim], None for a model without.
      null_control: [control_dim] the vector of no control, for guidance on the control; else None.
    """

    text: jax.Array
    control: jax.Array | None
    null_control: jax.Array | None = None


def guided_velocity(
    model: CogVideoXTransformer,
    x: jax.Array,
    told: Conditions,
    timestep: jax.Array,
    scale: jax.Array | float,
    sample: SampleConfig,
) -> jax.Array:
    """v [1, F, H, W, C] of one clip; `scale` is that of the text's guidance."""
    text, control, texts = told.text, told.control, len(told.text)
    if control is not None:
        control = jnp.repeat(control, texts, axis=0)
        if told.null_control is not None:
            text = jnp.concatenate([text, text[-1:]])
            control = jnp.concatenate([control, jnp.broadcast_to(told.null_control, control[:1].shape)])
    rows = len(text)
    timestep = jnp.broadcast_to(timestep, (rows, *timestep.shape[1:]))
    embedded = None
    if model.cfg.guidance_dim is not None:
        embedded = objective.embedded_guidance(jnp.full(rows, sample.guidance_embedding_scale))
    v = model(jnp.repeat(x, rows, axis=0), text, timestep, control=control, guidance=embedded)
    full = v[texts - 1 : texts]
    guided = full if texts == 1 else v[:1] + scale * (full - v[:1])
    return guided if rows == texts else guided + (sample.control_guidance - 1) * (full - v[texts:])


class Prediction(NamedTuple):
    """What a step of "dpm" keeps for the next one: the predicted x_0, and its times."""

    clean: jax.Array
    timestep: np.ndarray


def solver_step(
    x: jax.Array,
    v: jax.Array,
    noise: jax.Array,
    timestep: np.ndarray,
    alphas: np.ndarray,
    sample: SampleConfig,
    last: Prediction | None,
) -> tuple[jax.Array, Prediction]:
    """One step of "ddim" or "dpm", from times [1] of whole clips or [1, F] of frames.

    Args:
      x, v: the noisy latents [1, F, H, W, C], and what the model predicts of them.
      noise: standard normal of that shape, for "dpm".
      timestep: where x is.
      alphas: [1000] of the noise schedule.
      sample: the solver, and how many steps it takes.
      last: of the step before; None at the first one.
    """
    following = timestep - v_prediction.NUM_TIMESTEPS // sample.num_steps
    a, a_next = v_prediction.at(alphas, timestep), v_prediction.at(alphas, following)
    clean = v_prediction.clean_from_velocity(x, v, a)
    if sample.solver == "ddim":
        moved = v_prediction.ddim_step(x, clean, a, a_next)
    # Where one group of frames reaches the end, all take a step of first order, as in the original.
    elif last is None or (following < 0).any():
        moved = v_prediction.dpm_step(x, clean, noise, a, a_next)
    else:
        a_last = v_prediction.at(alphas, last.timestep)
        moved = v_prediction.dpm_step(x, clean, noise, a, a_next, last_clean=last.clean, a_last=a_last)
    return moved, Prediction(clean, timestep)


Noise = Callable[[int], jax.Array]


class ClipSampler:
    """Whole clips: every frame has the same time."""

    def __init__(self, model: CogVideoXTransformer, sample: SampleConfig, alphas: np.ndarray):
        self.sample, self.alphas = sample, alphas
        self._velocity = nnx.jit(guided_velocity, static_argnums=5)
        self._model = model

    def __call__(self, initial: jax.Array, told: Conditions, noise: Noise, *, start: int = 0) -> jax.Array:
        """Noise -> latents [1, F, H, W, C].

        Args:
          initial: pure noise, or latents at the noise of step `start`, where sampling begins.
          told: the text, and the control of a model with control.
          noise: number of a step -> its standard normal.
        """
        sample, x, last = self.sample, initial, None
        for i, t in list(enumerate(sample.timesteps().tolist()))[start:]:
            scale = dynamic_scale(sample.guidance, sample.num_steps, t) if sample.dynamic_guidance else sample.guidance
            v = self._velocity(self._model, x, told, jnp.full(1, t), scale, sample)
            x, last = solver_step(x, v, noise(i), np.array([t]), self.alphas, sample, last)
        return x


class StreamSampler:
    """The endless stream: a queue of frames whose noise grows; every call emits the cleanest ones.

    Attributes:
      window: [1, frames, H, W, C], the only state.
    """

    def __init__(self, model: CogVideoXTransformer, sample: SampleConfig, alphas: np.ndarray):
        self.sample, self.alphas = sample, alphas
        self.rows = windows.timestep_rows(sample.timesteps(), sample.groups, sample.window_frames)
        self._model = model
        self._pass = nnx.jit(self._one_pass)

    @property
    def frames(self) -> int:
        """Latent frames of a window, with the given one."""
        return windows.frames(self.sample.groups, self.sample.window_frames)

    def reset(self, latents: jax.Array, noise: jax.Array) -> None:
        """Start from a clip's latents [1, frames, H, W, C], noised as the first pass expects; the first frame too."""
        self.window = v_prediction.add_noise(latents, noise, v_prediction.at(self.alphas, self.rows[:1]))

    def step(self, told: Conditions, step_noise: jax.Array, new_noise: jax.Array) -> jax.Array:
        """One window -> latents [1, window_frames, H, W, C].

        Args:
          told: with the control of the frames that are in the window now.
          step_noise: [num_steps / groups, 1, frames - 1, H, W, C] standard normal.
          new_noise: [1, window_frames, H, W, C] the frames that enter.
        """
        emitted, self.window = self._pass(self._model, self.window, told, step_noise, new_noise)
        return emitted

    def _one_pass(
        self,
        model: CogVideoXTransformer,
        window: jax.Array,
        told: Conditions,
        step_noise: jax.Array,
        new_noise: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        last = None
        for i, row in enumerate(self.rows):
            v = guided_velocity(model, window, told, jnp.asarray(row)[None], self.sample.guidance, self.sample)[:, 1:]
            moving, last = self._solve(window[:, 1:], v, i, last, step_noise[i])
            window = jnp.concatenate([window[:, :1], moving], axis=1)
        return windows.advance(window, new_noise, self.sample.window_frames)

    def _solve(
        self, x: jax.Array, v: jax.Array, i: int, last: Prediction | None, noise: jax.Array
    ) -> tuple[jax.Array, Prediction | None]:
        """Step i of the moving frames -> their next state, and what the next step needs."""
        sample, row = self.sample, self.rows[i][None, 1:]
        if sample.solver != "consistency":
            return solver_step(x, v, noise, row, self.alphas, sample, last)
        times = sample.timesteps()
        # The next time of the sampler's list; after the last one comes the end.
        following = dict(zip(times.tolist(), [*times[1:].tolist(), -1], strict=True))
        next_row = np.vectorize(following.__getitem__)(row)
        low = consistency.jump(x, v, self.alphas, row, sample.phases)
        return consistency.renoise(low, noise, self.alphas, row, next_row, sample.phases), None
