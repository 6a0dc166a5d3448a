"""Sampling of Cosmos-Predict2 in latent space: one window of frames from its conditioning frames.

A window of several cameras has the frames of one camera after the other, each with its own conditioning frames.
Source: cosmos-predict2 `pipelines/video2world.py`, `pipelines/multiview.py`.
"""

import dataclasses
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jworld.diffusion import adams_bashforth, few_steps, rectified_flow, step_reports
from jworld.models.cosmos.transformer import CosmosInputs, CosmosTransformer, view_of_frames
from jworld.parallel import axes
from jworld.parallel.programs import Program
from jworld.utils import ranges

#: State and steps of either solver.
State = adams_bashforth.State | few_steps.State
Steps = adams_bashforth.Steps | few_steps.Steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Settings of the sampler (`config.sample.rollout`).

    Attributes:
      solver: "adams_bashforth", as published, or "few_steps" for a distilled model, see `diffusion.few_steps`.
      num_steps: solver steps; "adams_bashforth" evaluates the network once more at the end.
      guidance: scale g of classifier-free guidance x + g (x - x_negative), the usual scale less 1; 0 disables it.
      negative_prompt: negative prompt of the guidance; "" uses the zeros that replace dropped text in training.
      conditioning_frames: latent frames that a window continues: 1 (an image) or 2 (five frames), of every camera.
      lowest, highest: range of noise levels of "adams_bashforth".
      order: its noise levels are evenly spaced in their `order`-th root.
      shift: shift towards noise of the evenly spaced levels of "few_steps".
      given_sigma: noise level that the network receives for conditioning frames, which enter clean.
      fps: frame rate of generated videos, in frames per second; None for that of the data set or the published model.
    """

    solver: Literal["adams_bashforth", "few_steps"] = "adams_bashforth"
    num_steps: ranges.Steps = 35
    guidance: ranges.Guidance = 7.0
    negative_prompt: str = ""
    conditioning_frames: Literal[1, 2] = 1
    lowest: ranges.Positive = 0.002
    highest: ranges.Positive = 80.0
    order: Annotated[float, ranges.Range(0, 100, above=True)] = 7.0
    shift: ranges.Shift = 5.0
    given_sigma: ranges.PositiveOrZero = rectified_flow.GIVEN_SIGMA
    fps: ranges.FramesPerSecond | None = None

    def __post_init__(self) -> None:
        ranges.check(self)
        if not self.lowest < self.highest:
            raise ValueError(f"lowest is {self.lowest} and highest {self.highest}, expected lowest < highest")

    @property
    def rows(self) -> int:
        """Number of texts per window: the prompt, and the negative prompt before it if there is guidance."""
        return 1 if self.guidance == 0 else 2


class WindowSampler:
    """Sampler of windows, compiled once: all windows have the same shape for any number of conditioning frames."""

    def __init__(
        self,
        model: CosmosTransformer,
        sample: SampleConfig,
        *,
        fps: float | None = None,
        view_ids: tuple[int, ...] = (),
    ):
        """Set up the sampler.

        Args:
          model: the network.
          sample: settings.
          fps: frame rate of the videos, which models with `fps_modulation` need.
          view_ids: ids of several cameras, in their order in a window; () for one camera.
        """
        self.model, self.sample, self._view_ids = model, sample, view_ids
        self._fps = jnp.float32(fps) if fps is not None and model.cfg.fps_modulation else None
        self._sigmas = adams_bashforth.noise_levels(
            sample.num_steps, lowest=sample.lowest, highest=sample.highest, order=sample.order
        )
        self._rows: Steps = adams_bashforth.all_steps(self._sigmas)
        if sample.solver == "few_steps":
            self._rows = few_steps.all_steps(sample.num_steps, sample.shift)
        self._listener: step_reports.Listener | None = None
        self._run = jax.jit(self._steps)

    def watch(self, listener: step_reports.Listener | None) -> None:
        """Call `listener` after every solver step of the next windows."""
        self._listener = listener

    def program(self, video: tuple[int, ...], text: tuple[int, ...], motion: tuple[int, ...] | None = None) -> Program:
        """Return the program for windows of the shape `video` [F, H, W, C] with text and motion of these shapes."""
        frames, mask, states = map(axes.described, (video, video[:1], text))
        noisy = axes.described((1, *video))
        state = (few_steps.State if self.sample.solver == "few_steps" else adams_bashforth.State)(noisy, noisy)
        first = step_reports.described(self._rows, self._listener)
        action = None if motion is None else axes.described(motion)
        arguments = self.model, state, first, frames, mask, states, action
        if self._listener is None:
            return Program("denoising steps", self._run, arguments)
        return Program("denoising step", self._run, arguments, runs=len(jax.tree.leaves(self._rows)[0]))

    def __call__(
        self, given: np.ndarray, text: jax.Array, noise: jax.Array | np.ndarray, motion: np.ndarray | None = None
    ) -> jax.Array:
        """Sample one window.

        Args:
          given: conditioning latents [n, H, W, C], the first n frames of the window; with V cameras [V, n, H, W, C].
          text: states of the prompt [1, S, Dt], or [2, S, Dt] with the negative prompt first; with V cameras V * S.
          noise: standard normal [F, H, W, C]; with V cameras V * F.
          motion: motion [steps, 7] for an action model, else None.

        Returns:
          Latents [F, H, W, C] float32, or V * F; the first n of every camera equal `given`.
        """
        if len(text) != self.sample.rows:
            raise ValueError(f"guidance {self.sample.guidance} needs text of batch {self.sample.rows}, got {len(text)}")
        cameras = max(len(self._view_ids), 1)
        given = given.reshape(cameras, -1, *given.shape[-3:])
        frames = np.zeros((cameras, len(noise) // cameras, *noise.shape[1:]), np.float32)
        frames[:, : given.shape[1]] = given
        mask = np.tile((np.arange(frames.shape[1]) < given.shape[1]).astype(np.float32), cameras)
        frames = frames.reshape(noise.shape)
        action = None if motion is None else jnp.asarray(motion)
        given_arrays = jnp.asarray(frames), jnp.asarray(mask), text, action

        def call(state: State, steps: Any) -> State:
            after: State = self._run(self.model, state, steps, *given_arrays)
            return after

        state = self._start(jnp.asarray(noise)[None])
        return step_reports.run(call, state, self._rows, self._listener).x[0]

    def _start(self, noise: jax.Array) -> State:
        if self.sample.solver == "few_steps":
            return few_steps.start(noise)
        return adams_bashforth.start(noise, self._sigmas)

    def _steps(
        self,
        model: CosmosTransformer,
        state: State,
        steps: Any,
        frames: jax.Array,
        mask: jax.Array,
        text: jax.Array,
        motion: jax.Array | None,
    ) -> State:
        """Run some steps of a window."""
        rows = self.sample.rows

        def repeated(x: jax.Array) -> jax.Array:
            return jnp.broadcast_to(x, (rows, *x.shape))

        given = rectified_flow.ConditioningFrames(repeated(frames), repeated(mask), self.sample.given_sigma)
        action = None if motion is None else repeated(motion)
        view = view_of_frames(self._view_ids, len(mask)) if self._view_ids else None

        def network(video: jax.Array, time: jax.Array) -> jax.Array:
            inputs = CosmosInputs(video, time, text, given=given.mask, action=action, fps=self._fps, view=view)
            return model(inputs)

        is_few = isinstance(state, few_steps.State)
        predict = rectified_flow.denoise_flow if is_few else rectified_flow.denoise

        def denoise(x: jax.Array, level: jax.Array) -> jax.Array:
            clean = predict(network, repeated(x[0]), jnp.broadcast_to(level, (rows,)), given)
            return clean if rows == 1 else rectified_flow.guided(clean[1:], clean[:1], self.sample.guidance)

        if isinstance(state, few_steps.State):
            return few_steps.run(denoise, state, steps)
        return adams_bashforth.run(denoise, state, steps)
