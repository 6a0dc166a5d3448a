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

from jworld.diffusion import consistency, step_reports, v_prediction, windows
from jworld.models.cogvideox.transformer import CogVideoXTransformer
from jworld.parallel import axes
from jworld.parallel.programs import Program
from jworld.systems.matrix import objective
from jworld.utils import ranges

SOLVERS = ("ddim", "dpm", "consistency")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Settings of the sampler (`config.sample.rollout`).

    Attributes:
      mode: "clip" generates whole clips from a caption, "stream" an endless video, window by window.
      solver: "ddim", "dpm" (stages 1 to 3) or "consistency" (stage 4).
      num_steps: denoising steps of a frame from pure noise to clean.
      spacing: spacing of the timesteps, see `v_prediction.spaced_timesteps`; the consistency solver has its own.
      guidance: scale of classifier-free guidance on the text; 1 disables it.
      control_guidance: scale of classifier-free guidance on the control; 1 disables it, as in the original.
      guidance_embedding_scale: input of a model with a guidance embedding, which replaces guidance on the text.
      dynamic_guidance: increase the guidance scale from 1 over a clip's steps, by the original's formula.
      groups: noise groups of a window.
      window_frames: latent frames of a group, which a window emits.
      solver_steps: steps of the solver that a consistency model was distilled from.
      phases_per_group: phases of a consistency model in a group's range of timesteps.
      negative_prompt: text of the negative branch of the guidance on the text.
      fps: frame rate of generated videos, in frames per second; None for that of the data set or the published model.
    """

    mode: Literal["clip", "stream"] = "clip"
    solver: str = "dpm"
    num_steps: ranges.Steps = 20
    spacing: str = "trailing"
    guidance: ranges.Guidance = 6.0
    control_guidance: ranges.Guidance = 1.0
    guidance_embedding_scale: ranges.Guidance = 6.0
    dynamic_guidance: bool = False
    groups: ranges.Steps = 4
    window_frames: ranges.Size = 4
    solver_steps: ranges.Steps = 40
    phases_per_group: ranges.Steps = 1
    negative_prompt: str = ""
    fps: ranges.FramesPerSecond | None = None

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise ValueError(f"solver is {self.solver!r}, must be one of {', '.join(SOLVERS)}")
        ranges.check(self)
        if self.mode == "clip" and self.solver == "consistency":
            raise ValueError("solver is 'consistency', which generates streams: set mode to 'stream'")
        if self.mode == "stream" and self.num_steps % self.groups:
            raise ValueError(f"num_steps is {self.num_steps}, expected a multiple of the {self.groups} groups")

    @property
    def phases(self) -> int:
        return self.groups * self.phases_per_group

    def timesteps(self) -> np.ndarray:
        """Return the timesteps, [num_steps] int32, noisiest first."""
        if self.solver == "consistency":
            return consistency.sampling_timesteps(self.num_steps, solver_steps=self.solver_steps)
        return v_prediction.spaced_timesteps(self.num_steps, self.spacing)


def dynamic_scale(guidance: float, num_steps: int, timestep: int) -> float:
    """Return 1 + g (1 - cos(pi ((n - t) / n)^5)) / 2, for n steps and the timestep t in 0..999, as in the original."""
    return 1 + guidance * (1 - math.cos(math.pi * ((num_steps - timestep) / num_steps) ** 5.0)) / 2


class Conditions(NamedTuple):
    """Conditioning of every evaluation of one clip.

    Attributes:
      text: text states [1, L, Dt], or [2, L, Dt] with the negative prompt first for guidance.
      control: control vectors [1, F, control_dim], None for a model without control.
      null_control: vector for no control [control_dim] for guidance on the control, else None.
    """

    text: jax.Array
    control: jax.Array | None
    null_control: jax.Array | None = None


def guided_velocity(
    model: CogVideoXTransformer,
    x: jax.Array,
    conditions: Conditions,
    timestep: jax.Array,
    scale: jax.Array | float,
    sample: SampleConfig,
) -> jax.Array:
    """Evaluate the guided v [1, F, H, W, C] of one clip; `scale` is the guidance scale of the text."""
    text, control, texts = conditions.text, conditions.control, len(conditions.text)
    if control is not None:
        control = jnp.repeat(control, texts, axis=0)
        if conditions.null_control is not None:
            text = jnp.concatenate([text, text[-1:]])
            control = jnp.concatenate([control, jnp.broadcast_to(conditions.null_control, control[:1].shape)])
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
    """The predicted x_0 of a "dpm" step and its timesteps, for the next step."""

    clean: jax.Array
    timestep: np.ndarray | jax.Array


def solver_step(
    x: jax.Array,
    v: jax.Array,
    noise: jax.Array,
    timestep: np.ndarray | jax.Array,
    alphas: np.ndarray,
    sample: SampleConfig,
    last: Prediction | None,
) -> tuple[jax.Array, Prediction]:
    """Run one step of "ddim" or "dpm".

    Args:
      x, v: noisy latents [1, F, H, W, C], and the model's prediction of v.
      noise: standard normal of the same shape, for "dpm".
      timestep: timestep of whole clips [1] or of frames [1, F]; on the host for "dpm".
      alphas: [1000], of the noise schedule.
      sample: the solver and its number of steps.
      last: prediction of the previous step; None at the first step.

    Returns:
      The latents after the step, and the prediction for the next step.
    """
    following = timestep - v_prediction.NUM_TIMESTEPS // sample.num_steps
    a, a_next = v_prediction.at(alphas, timestep), v_prediction.at(alphas, following)
    clean = v_prediction.clean_from_velocity(x, v, a)
    if sample.solver == "ddim":
        moved = v_prediction.ddim_step(x, clean, a, a_next)
    # If one group of frames reaches the end, all take a first-order step, as in the original.
    elif last is None or (following < 0).any():
        moved = v_prediction.dpm_step(x, clean, noise, a, a_next)
    else:
        a_last = v_prediction.at(alphas, last.timestep)
        moved = v_prediction.dpm_step(x, clean, noise, a, a_next, last_clean=last.clean, a_last=a_last)
    return moved, Prediction(clean, timestep)


Noise = Callable[[int], jax.Array]


class ClipSampler:
    """Sampler of whole clips, whose frames share one timestep."""

    def __init__(self, model: CogVideoXTransformer, sample: SampleConfig, alphas: np.ndarray):
        self.sample, self.alphas = sample, alphas
        self._velocity = jax.jit(guided_velocity, static_argnums=5)
        self._model = model
        self._listener: step_reports.Listener | None = None

    def watch(self, listener: step_reports.Listener | None) -> None:
        """Call `listener` after every step of the next clips; every step is then waited for."""
        self._listener = listener

    def program(self, shape: tuple[int, ...], conditions: Conditions) -> Program:
        """Return the program for clips of the shape [F, H, W, C] with conditioning of these shapes."""
        arguments = axes.described((1, *shape)), conditions, jnp.full(1, 0), self.sample.guidance, self.sample
        return Program("denoising step", self._velocity, (self._model, *arguments), runs=len(self.sample.timesteps()))

    def __call__(self, initial: jax.Array, conditions: Conditions, noise: Noise, *, start: int = 0) -> jax.Array:
        """Sample latents [1, F, H, W, C].

        Args:
          initial: pure noise, or latents with the noise of step `start`.
          conditions: the text, and the control for a model with control.
          noise: number of a step -> its standard normal.
          start: first step.
        """
        sample, x, last = self.sample, initial, None
        for i, t in list(enumerate(sample.timesteps().tolist()))[start:]:
            scale = dynamic_scale(sample.guidance, sample.num_steps, t) if sample.dynamic_guidance else sample.guidance
            v = self._velocity(self._model, x, conditions, jnp.full(1, t), scale, sample)
            x, last = solver_step(x, v, noise(i), np.array([t]), self.alphas, sample, last)
            if self._listener is not None:
                jax.block_until_ready(x)
                self._listener(i + 1, sample.num_steps)
        return x


class StreamSampler:
    """Sampler of the endless stream: a queue of frames with increasing noise, which emits the cleanest ones.

    Attributes:
      window: latents [1, frames, H, W, C], the only state.
    """

    def __init__(self, model: CogVideoXTransformer, sample: SampleConfig, alphas: np.ndarray):
        self.sample, self.alphas = sample, alphas
        self.rows = windows.timestep_rows(sample.timesteps(), sample.groups, sample.window_frames)
        self._model = model
        self._listener: step_reports.Listener | None = None
        self._pass = jax.jit(self._one_pass)
        self._velocity = jax.jit(guided_velocity, static_argnums=(4, 5))

    def watch(self, listener: step_reports.Listener | None) -> None:
        """Call `listener` after every step of the next windows; every step is then a call of its own."""
        self._listener = listener

    @property
    def frames(self) -> int:
        """Latent frames of a window, including the context frame."""
        return windows.frames(self.sample.groups, self.sample.window_frames)

    def program(self, shape: tuple[int, int, int], conditions: Conditions) -> Program:
        """Return the program for latent frames of the shape [H, W, C] with conditioning of these shapes."""
        counts = (1, self.frames), (len(self.rows), 1, self.frames - 1), (1, self.sample.window_frames)
        window, step_noise, new_noise = (axes.described((*count, *shape)) for count in counts)
        if self._listener is None:
            return Program("denoising steps", self._pass, (self._model, window, conditions, step_noise, new_noise))
        row = jax.ShapeDtypeStruct((1, self.frames), self.rows.dtype)
        arguments = self._model, window, conditions, row, self.sample.guidance, self.sample
        return Program("denoising step", self._velocity, arguments, runs=len(self.rows))

    def reset(self, latents: jax.Array, noise: jax.Array) -> None:
        """Start from a clip's latents [1, frames, H, W, C]; noise is added to all of them for the first pass."""
        self.window = v_prediction.add_noise(latents, noise, v_prediction.at(self.alphas, self.rows[:1]))

    def step(self, conditions: Conditions, step_noise: jax.Array, new_noise: jax.Array) -> jax.Array:
        """Sample one window and return the latents that it emits, [1, window_frames, H, W, C].

        Args:
          conditions: the text, and the control of the frames in the current window.
          step_noise: standard normal [num_steps / groups, 1, frames - 1, H, W, C].
          new_noise: standard normal [1, window_frames, H, W, C], the frames that enter the window.
        """
        emitted: jax.Array
        inputs = self._model, self.window, conditions, step_noise, new_noise
        if self._listener is None:
            emitted, self.window = self._pass(*inputs)
        else:
            emitted, self.window = self._one_pass(*inputs, velocity=self._velocity, listener=self._listener)
        return emitted

    def _one_pass(
        self,
        model: CogVideoXTransformer,
        window: jax.Array,
        conditions: Conditions,
        step_noise: jax.Array,
        new_noise: jax.Array,
        *,
        velocity: Callable[..., jax.Array] = guided_velocity,
        listener: step_reports.Listener | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        last = None
        for i, row in enumerate(self.rows):
            v = velocity(model, window, conditions, row[None], self.sample.guidance, self.sample)[:, 1:]
            moving, last = self._solve(window[:, 1:], v, i, last, step_noise[i])
            window = jnp.concatenate([window[:, :1], moving], axis=1)
            if listener is not None:
                jax.block_until_ready(window)
                listener(i + 1, len(self.rows))
        return windows.advance(window, new_noise, self.sample.window_frames)

    def _solve(
        self, x: jax.Array, v: jax.Array, i: int, last: Prediction | None, noise: jax.Array
    ) -> tuple[jax.Array, Prediction | None]:
        """Run step i for all frames but the context frame; return them and the prediction for the next step."""
        sample, row = self.sample, self.rows[i][None, 1:]
        if sample.solver != "consistency":
            return solver_step(x, v, noise, row, self.alphas, sample, last)
        times = sample.timesteps()
        # The sampler's next timestep; -1, the end, after the last one.
        following = dict(zip(times.tolist(), [*times[1:].tolist(), -1], strict=True))
        next_row = np.vectorize(following.__getitem__)(row)
        low = consistency.jump(x, v, self.alphas, row, sample.phases)
        return consistency.renoise(low, noise, self.alphas, row, next_row, sample.phases), None
