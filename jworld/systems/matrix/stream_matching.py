"""Stage 4 of The Matrix by distribution matching: a student of its own streams, an alternative to phased consistency.

The student continues a recorded window for some windows without gradients, as in sampling, until its frames are its
own. The last evaluation of the last window has the gradient. Its predictions of all frames, whose noise levels are
those of the groups, are the samples. Teacher and critic see them with the noise of a window of stage 3.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from jworld.diffusion import distribution_matching, v_prediction, windows
from jworld.models.cogvideox.transformer import CogVideoXTransformer
from jworld.systems.matrix import objective, sampling
from jworld.systems.matrix.sampling import SampleConfig
from jworld.training import parts, score_losses
from jworld.utils import errors, ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchingConfig(distribution_matching.ScoreConfig, objective.ScheduleConfig):
    """Settings of distribution matching (`config.loss`); the student's denoising steps are those of `sample.rollout`.

    A noise level of the scores is a share of the timesteps of every noise group.

    Attributes:
      kind: "distribution_matching".
      slides: windows that the student generates before the one that is scored. As many as groups, and all frames of
        that one are the student's.
      teacher_guidance: scale of the teacher's classifier-free guidance on the text; 1 disables it.
      solver_steps: steps of the teacher with which an evaluation compares the student.
    """

    kind: Literal["distribution_matching"] = "distribution_matching"
    shift: ranges.Shift = 1.0
    slides: ranges.Steps = 4
    teacher_guidance: ranges.Guidance = 3.0
    solver_steps: ranges.Steps = 40

    def __post_init__(self) -> None:
        distribution_matching.ScoreConfig.__post_init__(self)
        objective.ScheduleConfig.__post_init__(self)


def check(config: ml_collections.ConfigDict, cfg: MatchingConfig, sample: SampleConfig, frames: int) -> None:
    """Raise a `UserError` if other sections of the config do not fit the distillation.

    `frames` are the latent frames of an example.
    """
    if sample.mode != "stream" or sample.solver != "ddim" or sample.guidance != 1 or sample.control_guidance != 1:
        raise errors.UserError(
            f"config.sample.rollout has mode {sample.mode!r}, solver {sample.solver!r}, guidance {sample.guidance} and "
            f"control_guidance {sample.control_guidance}, expected 'stream', 'ddim', 1 and 1: the teacher's guidance "
            "is config.loss.teacher_guidance"
        )
    if sample.groups != cfg.groups:
        raise errors.UserError(
            f"config.sample.rollout.groups is {sample.groups} and config.loss.groups {cfg.groups}, expected the same"
        )
    needed = windows.frames(cfg.groups + cfg.slides, sample.window_frames)
    if frames != needed:
        raise errors.UserError(
            f"config.data.clip.window_frames is {frames}, expected {needed}: a window of {cfg.groups} groups of "
            f"{sample.window_frames} latents that moves by config.loss.slides {cfg.slides} groups, and the given latent"
        )
    if config.model.get("guidance_dim") is not None:
        raise errors.UserError(
            f"config.model.guidance_dim is {config.model.guidance_dim}, expected None: the teacher has one scale"
        )
    parts.check_critic(config, "distribution matching")


class Draws(NamedTuple):
    """All random numbers of a loss.

    Attributes:
      scores: draws of the scores; `noise` is that of the first window, `last_step` is the last step of a window.
      entering: standard normal, the frames that enter the window [slides, B, size, H, W, C].
    """

    scores: distribution_matching.Draws
    entering: jax.Array


class Stream(NamedTuple):
    """The last window of a rollout before its last step [B, F, H, W, C], and its control [B, F, control_dim]."""

    window: jax.Array
    control: jax.Array | None


@dataclasses.dataclass(frozen=True)
class StreamMatching:
    """A `score_losses.Matching` of windows in a stream.

    Attributes:
      batch: arrays of `Matrix.batch_spec`.
      draws: the random numbers.
      cfg: the settings.
      sample: the student's denoising steps.
      alphas: [1000], of the noise schedule.
    """

    batch: objective.Batch
    draws: Draws
    cfg: MatchingConfig
    sample: SampleConfig
    alphas: np.ndarray

    def roll_out(self, model: CogVideoXTransformer) -> Stream:
        """See `Matching`."""
        constant = score_losses.without_gradients(model)
        size, rows = self.sample.window_frames, timestep_rows(self.sample)
        clean = self.batch["latent"].astype(jnp.float32)[:, : rows.shape[1]]
        first = v_prediction.add_noise(clean, self.draws.scores.noise, v_prediction.at(self.alphas, rows[:1]))

        def steps(window: jax.Array, number: jax.Array | int, count: jax.Array | int) -> jax.Array:
            control = self._control(number)

            def step(i: jax.Array, x: jax.Array) -> jax.Array:
                return self._step(constant, x, control, jnp.asarray(rows)[i])

            after: jax.Array = jax.lax.fori_loop(0, count, step, window)
            return after

        def slide(window: jax.Array, new: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
            number, noise = new
            return windows.advance(steps(window, number, len(rows)), noise, size)[1], None

        window, _ = jax.lax.scan(slide, first, (jnp.arange(self.cfg.slides), self.draws.entering))
        window = steps(window, self.cfg.slides, self.draws.scores.last_step)
        return jax.lax.stop_gradient(Stream(window, self._control(self.cfg.slides)))

    def repeat(self, model: CogVideoXTransformer, rollout: Stream) -> jax.Array:
        """See `Matching`; the context frame is that of the rollout."""
        row = jnp.asarray(timestep_rows(self.sample))[self.draws.scores.last_step]
        clean = self._predict(model, rollout.window, row[None], rollout.control, self.batch["text_states"])[0]
        return _with_context(rollout.window, clean)

    def made(self, rollout: Stream) -> None:
        """See `Matching`: only `repeat` makes them."""

    def score(self, network: CogVideoXTransformer, made: jax.Array, *, is_teacher: bool) -> score_losses.Scores:
        """See `Matching`; the context frame is known, so that its error is 0."""
        level, noise = self.draws.scores.level, self.draws.scores.score_noise
        times = windows.sample_timesteps(
            jax.random.key(0), len(made), self.cfg.groups, self.sample.window_frames, level=level[:, None]
        )
        a = v_prediction.at(self.alphas, times)
        noisy = v_prediction.add_noise(made, noise, a)
        control = self._control(self.cfg.slides)
        clean, v = self._predict(network, noisy, times, control, self.batch["text_states"])
        if is_teacher and self.cfg.teacher_guidance != 1:
            without, _ = self._predict(network, noisy, times, control, self.batch["null_states"])
            clean = without + self.cfg.teacher_guidance * (clean - without)
        target = v_prediction.velocity(made, noise, a)
        return score_losses.Scores(_with_context(made, clean), _with_context(target, v), target)

    def _step(
        self, model: CogVideoXTransformer, window: jax.Array, control: jax.Array | None, row: jax.Array
    ) -> jax.Array:
        """Run one step of the sampler on all frames but the context frame."""
        _, v = self._predict(model, window, row[None], control, self.batch["text_states"])
        # The step of "ddim" has no noise.
        moved, _ = sampling.solver_step(window, v, jnp.zeros(()), row[None], self.alphas, self.sample, None)
        return _with_context(window, moved)

    def _predict(
        self,
        model: CogVideoXTransformer,
        window: jax.Array,
        times: jax.Array,
        control: jax.Array | None,
        text: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """Predict clean latents and v of a window with times [B or 1, F]."""
        times = jnp.broadcast_to(times, window.shape[:2])
        v = model(window, text, times, control=control)
        return v_prediction.clean_from_velocity(window, v, v_prediction.at(self.alphas, times)), v

    def _control(self, number: jax.Array | int) -> jax.Array | None:
        """Return the control of window `number`."""
        if "control" not in self.batch:
            return None
        frames = windows.frames(self.cfg.groups, self.sample.window_frames)
        start = number * self.sample.window_frames
        return jax.lax.dynamic_slice_in_dim(self.batch["control"], start, frames, axis=1)


def _with_context(window: jax.Array, others: jax.Array) -> jax.Array:
    """Return the context frame of one window and the other frames of another one."""
    return jnp.concatenate([window[:, :1], others[:, 1:].astype(window.dtype)], axis=1)


def timestep_rows(sample: SampleConfig) -> np.ndarray:
    """Return the timesteps of the frames in every step of a window, [steps / groups, F] int32."""
    return windows.timestep_rows(sample.timesteps(), sample.groups, sample.window_frames)


def matching(
    batch: objective.Batch,
    key: jax.Array,
    cfg: MatchingConfig,
    sample: SampleConfig,
    alphas: np.ndarray,
    level: jax.Array | None = None,
) -> StreamMatching:
    """Draw the random numbers of a loss; `level` replaces the noise levels of the scores."""
    entering_key, key = jax.random.split(key)
    rows, size = timestep_rows(sample), sample.window_frames
    batch_size, _, *frame = batch["latent"].shape
    scores = distribution_matching.draw(key, (batch_size, rows.shape[1], *frame), len(rows), cfg, level)
    entering = jax.random.normal(entering_key, (cfg.slides, batch_size, size, *frame))
    return StreamMatching(batch, Draws(scores, entering), cfg, sample, alphas)
