"""Rollouts in latent space, for both models: one chunk per call, with its context frames.

Source: HY-WorldPlay `hyvideo/pipelines/worldplay_video_pipeline.py`.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jworld.cameras import memory
from jworld.diffusion import flow_matching, step_reports
from jworld.evaluation.held_out import Controls
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import FrameInputs, HunyuanTransformer
from jworld.parallel import axes
from jworld.parallel.programs import Program
from jworld.systems import live
from jworld.systems.worldplay import objective, references
from jworld.utils import ranges

Array = np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Settings of a rollout (`config.sample.rollout`).

    Attributes:
      mode: kind of the model. "autoregressive" denoises one training chunk at a time, with a KV cache of text and
        context frames; "bidirectional" denoises four chunks at a time, with full attention.
      num_steps: denoising steps per chunk; few-step distilled weights need 4.
      shift: shift of the sampling times.
      guidance: scale of classifier-free guidance on the text; 1 disables it, as distilled weights need.
      context_time: diffusion time (t of 1000) of the clean context frames.
      negative_prompt: text of the negative branch of the guidance.
      fps: frame rate of generated videos, in frames per second; None for that of the data set or the published model.
    """

    mode: Literal["autoregressive", "bidirectional"] = "autoregressive"
    num_steps: ranges.Steps = 50
    shift: ranges.Shift = 5.0
    guidance: ranges.Guidance = 6.0
    context_time: Annotated[float, ranges.Range(0, 1000)] = 14.0
    negative_prompt: str = ""
    fps: ranges.FramesPerSecond | None = None

    def __post_init__(self) -> None:
        ranges.check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Context frames of a chunk: the first chunk, retrieved chunks and the latest `temporal_context` frames.

    Attributes:
      chunk_frames: latent frames per training chunk.
      memory_frames: number of all context frames.
      temporal_context: number of latest context frames.
      view: view of a camera, whose overlap with others decides which chunks are retrieved.
    """

    chunk_frames: int = 4
    memory_frames: int = 20
    temporal_context: int = 12
    view: memory.View = memory.PUBLISHED_VIEW

    def __post_init__(self) -> None:
        for name in ("memory_frames", "temporal_context"):
            if getattr(self, name) % self.chunk_frames:
                raise ValueError(f"{name} {getattr(self, name)} is not a multiple of chunk_frames {self.chunk_frames}")


class Frames(NamedTuple):
    """Conditioning of some latent frames of a rollout.

    Attributes:
      number: index in the rollout, [F] int32.
      position: position in time for the model, [F] int32.
      valid: [F] bool, False for padding.
      action, w2c, intrinsics: see `Controls`.
    """

    number: Array
    position: Array
    valid: Array
    action: Array
    w2c: Array
    intrinsics: Array


class Described(NamedTuple):
    """Shapes of the arrays of a chunk, by which its programs are compiled.

    Attributes:
      noise: of the chunk.
      steps: denoising steps of one call.
      image: first image, which comes from the host like all that follow.
      past: latents of the context frames.
      context, chunk: conditioning of both.
    """

    noise: jax.ShapeDtypeStruct
    steps: jax.ShapeDtypeStruct
    image: jax.ShapeDtypeStruct
    past: jax.ShapeDtypeStruct
    context: Frames
    chunk: Frames


def _described_frames(count: int) -> Frames:
    """Return the shapes of the conditioning of so many frames."""
    dtypes = (np.int32, np.int32, np.bool_, np.int32, np.float32, np.float32)
    tails: tuple[tuple[int, ...], ...] = ((), (), (), (), (4, 4), (3, 3))
    fields: list[Any] = [jax.ShapeDtypeStruct((count, *x), dtype) for x, dtype in zip(tails, dtypes, strict=True)]
    return Frames(*fields)


def frame_inputs(
    frames: Frames,
    latents: Array,
    image: Array,
    times: jax.Array | float,
    rows: int,
    *,
    known: references.Known | None = None,
    given: int = 0,
    step_sizes: jax.Array | float | None = None,
) -> FrameInputs:
    """Return the model's inputs for the same frames with each of `rows` texts.

    Args:
      frames: conditioning of the frames.
      latents: [F, H, W, C].
      image: latent of the first frame, [1, H, W, C].
      times: times [F], or one for all frames.
      rows: number of texts.
      known: earlier frames [1, M] that are references, see `HunyuanConfig.references`; None for no references.
      given: number of first frames that have no references, as they are clean.
      step_sizes: sizes [F] of the denoising steps, or one for all frames, see `FrameInputs`; None for 0.
    """
    first = jnp.asarray(image)[None]
    condition = objective.condition_video(first, frames.number == 0)[0]
    if known is not None:
        found = references.find(jnp.asarray(frames.w2c[given:])[None], known, first)[0]
        condition = jnp.concatenate([condition[:given], found])

    def repeated(x: Array) -> jax.Array:
        return jnp.broadcast_to(x, (rows, *x.shape))

    def per_frame(x: jax.Array | float) -> jax.Array:
        return repeated(jnp.broadcast_to(jnp.asarray(x, jnp.float32), frames.number.shape))

    return FrameInputs(
        repeated(jnp.concatenate([latents.astype(jnp.float32), condition], axis=-1)),
        per_frame(times),
        repeated(frames.action),
        repeated(frames.w2c),
        repeated(frames.intrinsics),
        position=jnp.asarray(frames.position),
        mask=repeated(frames.valid),
        step_size=None if step_sizes is None else per_frame(step_sizes),
    )


def known_frames(model: HunyuanTransformer, past: Array, context: Frames) -> references.Known | None:
    """Return the frames `context` with the latents `past` as those of references; None for a model without them."""
    if not model.cfg.references:
        return None
    return references.Known(*(jnp.asarray(x)[None] for x in (past, context.w2c, context.valid)))


@functools.cache
def all_steps(cfg: SampleConfig) -> np.ndarray:
    """Return the noise levels before and after every denoising step, [num_steps, 2] float32."""
    sigmas = np.asarray(flow_matching.sampling_sigmas(cfg.num_steps, cfg.shift))
    return np.stack([sigmas[:-1], sigmas[1:]], axis=1)


def denoise(
    velocity: Callable[[jax.Array, jax.Array, jax.Array], jax.Array], noisy: jax.Array, steps: Array, cfg: SampleConfig
) -> jax.Array:
    """Run denoising steps on latents [f, H, W, C] and return them, float32.

    Args:
      velocity: (latents [f, H, W, C], time, size of the step) -> one row, or for guidance two: without and with the
        text. Sizes have the unit of times.
      noisy: standard normal noise, or the latents after the steps before.
      steps: rows of `all_steps`.
      cfg: settings of the rollout.
    """

    def step(x: jax.Array, levels: jax.Array) -> tuple[jax.Array, None]:
        sigma, next_sigma = levels
        rows = velocity(x, *(value * flow_matching.NUM_TIMESTEPS for value in (sigma, sigma - next_sigma)))
        guided = rows[0] if len(rows) == 1 else rows[0] + cfg.guidance * (rows[1] - rows[0])
        return flow_matching.euler_step(x, guided, sigma, next_sigma), None

    latents, _ = jax.lax.scan(step, noisy.astype(jnp.float32), jnp.asarray(steps))
    return latents


@functools.partial(jax.jit, static_argnames="shape")
def draw_noise(key: jax.Array, chunk: int, shape: tuple[int, ...]) -> jax.Array:
    """Draw the noise of one chunk, which does not depend on the length of the rollout."""
    return jax.random.normal(jax.random.fold_in(key, chunk), shape)


class GrowingArray:
    """An array that grows by rows; its buffer doubles, so appending a row takes constant time on average."""

    def __init__(self, shape: tuple[int, ...], dtype: type) -> None:
        self._buffer: np.ndarray = np.empty((1, *shape), dtype)
        self._count = 0

    @property
    def rows(self) -> np.ndarray:
        """All rows."""
        return self._buffer[: self._count]

    def append(self, rows: np.ndarray) -> None:
        """Append rows at the end."""
        needed = self._count + len(rows)
        if needed > len(self._buffer):
            larger = np.empty((2 * needed, *self._buffer.shape[1:]), self._buffer.dtype)
            larger[: self._count] = self.rows
            self._buffer = larger
        self._buffer[self._count : needed] = rows
        self._count = needed

    def remove(self, start: int, count: int) -> None:
        """Remove rows from `start` on."""
        self._buffer[start : self._count - count] = self._buffer[start + count : self._count].copy()
        self._count -= count


#: Latents that a session stores: longer rollouts forget the oldest ones after the first chunk.
HISTORY = 4096


class LatentSession(abc.ABC):
    """A rollout in latent space. Shapes are fixed, so every program compiles once for any length.

    Past frames are stored on the host, because retrieval may need any of them; device memory does not grow. Beyond
    `HISTORY` latents the oldest frames after the first chunk are forgotten, so that neither memory nor time grow.
    """

    #: Training chunks that are denoised together.
    training_chunks: int

    def __init__(
        self,
        model: HunyuanTransformer,
        *,
        sample: SampleConfig,
        memory_config: MemoryConfig,
        points: np.ndarray,
        retrieve: bool = True,
    ):
        """Open a session.

        Args:
          model: the network.
          sample: settings of the rollout.
          memory_config: numbers of context frames.
          points: Monte-Carlo points of memory selection.
          retrieve: retrieve context frames by camera; False uses only the latest frames.
        """
        self.model, self.sample, self.memory, self.points = model, sample, memory_config, points
        self.retrieve, self.history = retrieve, HISTORY
        #: Called after every denoising step.
        self.listener: step_reports.Listener | None = None
        self.chunk_frames = self.training_chunks * memory_config.chunk_frames
        # Each training chunk retrieves its own frames; the first chunk and the latest frames are common to all.
        retrieved = memory_config.memory_frames - memory_config.temporal_context - memory_config.chunk_frames
        self.context_frames = memory_config.memory_frames + (self.training_chunks - 1) * retrieved

    def reset(self, image_latent: np.ndarray, text: TextInputs, *, seed: int = 0) -> None:
        """Start from a first frame.

        Args:
          image_latent: latent of the first frame, [1, H, W, C].
          text: batch of 1, or with guidance a batch of 2 (unconditional, conditional).
          seed: random seed for the noise.
        """
        expected = 1 if self.sample.guidance == 1 else 2
        rows = text.text.shape[0]
        if rows != expected:
            raise ValueError(f"guidance {self.sample.guidance} needs text of batch {expected}, got {rows}")
        self._image = np.asarray(image_latent, np.float32)
        self._key = jax.random.key(seed)
        self._latents = GrowingArray(self._image.shape[1:], np.float32)
        self._action = GrowingArray((), np.int32)
        self._w2c = GrowingArray((4, 4), np.float64)
        self._intrinsics = GrowingArray((3, 3), np.float32)
        self._forgotten = 0
        self._begin(text)

    @property
    def num_frames(self) -> int:
        """Number of latent frames generated so far."""
        return len(self._latents.rows) + self._forgotten

    @property
    def last_w2c(self) -> np.ndarray:
        """Camera of the latest frame, [4, 4] float64."""
        w2c: np.ndarray = self._w2c.rows[-1]
        return w2c

    def step(self, controls: Controls, noise: np.ndarray | None = None) -> np.ndarray:
        """Generate a chunk from the controls of its frames: latents [chunk_frames, H, W, C] float32.

        Poses are world-to-camera, in one world for the whole rollout. `noise` replaces the seeded draw.
        """
        if len(controls.action) != self.chunk_frames:
            raise ValueError(f"controls of {len(controls.action)} latents, expected {self.chunk_frames}")
        current = len(self._latents.rows)
        shape = (self.chunk_frames, *self._image.shape[1:])
        if noise is None:
            drawn = draw_noise(self._key, self.num_frames // self.chunk_frames, shape)
        else:
            drawn = jnp.asarray(noise, jnp.float32).reshape(shape)
        for rows, values in zip((self._action, self._w2c, self._intrinsics), controls, strict=True):
            rows.append(values)
        selected = self.select(current)
        chunk = self._frames(np.arange(current, current + self.chunk_frames), first_position=len(selected))
        latents = np.asarray(self._denoise(drawn, *self._context(selected), chunk))
        self._latents.append(latents)
        self._context_numbers = [i if i < self.chunk_frames else i + self._forgotten for i in selected]
        self._forget()
        return latents

    def _forget(self) -> None:
        """Remove a part of the oldest frames after the first chunk if there are more than `history`."""
        if len(self._latents.rows) > self.history:
            count = max(self.history // 4 // self.chunk_frames, 1) * self.chunk_frames
            for rows in (self._latents, self._action, self._w2c, self._intrinsics):
                rows.remove(self.chunk_frames, count)
            self._forgotten += count

    def view(self) -> live.View:
        """Return the cameras of the latest chunk, and the frames that it was conditioned on."""
        latest = slice(-self.chunk_frames, None)
        return live.View(
            first=self.num_frames - self.chunk_frames,
            w2c=self._w2c.rows[latest].copy(),
            intrinsics=self._intrinsics.rows[latest].copy(),
            context=list(self._context_numbers),
        )

    def select(self, current: int) -> list[int]:
        """Return the sorted indices of the context frames of the chunk at frame `current`, whose poses are set."""
        if not self.retrieve:
            return list(range(max(current - self.memory.memory_frames, 0), current))
        chosen: set[int] = set()
        for start in range(current, current + self.chunk_frames, self.memory.chunk_frames):
            chosen |= set(
                memory.select_memory_frames(
                    self._w2c.rows,
                    start,
                    points=self.points,
                    memory_frames=self.memory.memory_frames,
                    temporal_context=self.memory.temporal_context,
                    chunk=self.memory.chunk_frames,
                    view=self.memory.view,
                )
            )
        return sorted(index for index in chosen if index < current)

    def _context(self, selected: list[int]) -> tuple[np.ndarray, Frames]:
        """Return the latents and conditioning of the selected frames, padded to `context_frames` by masked frames."""
        padded = np.zeros(self.context_frames, np.int64)
        padded[: len(selected)] = selected
        past = self._latents.rows if selected else np.zeros_like(self._image)
        return past[padded], self._frames(padded, valid=len(selected))

    def _frames(self, numbers: np.ndarray, *, first_position: int = 0, valid: int | None = None) -> Frames:
        """Return the conditioning of frames of the rollout; those after the first `valid` are padding."""
        order = np.arange(len(numbers), dtype=np.int32)
        return Frames(
            number=numbers.astype(np.int32),
            position=order + np.int32(first_position),
            valid=order < (len(numbers) if valid is None else valid),
            action=self._action.rows[numbers],
            w2c=self._w2c.rows[numbers].astype(np.float32),
            intrinsics=self._intrinsics.rows[numbers],
        )

    def described(self, image: tuple[int, ...]) -> Described:
        """Return the shapes of a chunk's arrays for images of the shape [1, H, W, C]."""
        given, past = (jax.ShapeDtypeStruct((n, *image[1:]), jnp.float32) for n in (1, self.context_frames))
        noise = axes.described((self.chunk_frames, *image[1:]))
        steps = step_reports.described(all_steps(self.sample), self.listener)
        return Described(noise, steps, given, past, *map(_described_frames, (self.context_frames, self.chunk_frames)))

    def denoising(self, function: Any, *arguments: Any, cache: Any = None) -> Program:
        """Return the program that denoises a chunk, or one step of it if there is a listener."""
        options, arguments = {"cfg": self.sample}, (self.model, *arguments)
        if self.listener is None:
            return Program("denoising steps", function, arguments, options, cache=cache)
        return Program("denoising step", function, arguments, options, self.sample.num_steps, cache)

    @abc.abstractmethod
    def programs(self, text: TextInputs, image: tuple[int, ...]) -> Iterator[Program]:
        """Yield the programs of a rollout for text of these shapes and images of the shape [1, H, W, C]."""

    @abc.abstractmethod
    def _begin(self, text: TextInputs) -> None:
        """Prepare the text inputs that all chunks share."""

    @abc.abstractmethod
    def _denoise(self, noise: jax.Array, past: np.ndarray, context: Frames, chunk: Frames) -> jax.Array:
        """Denoise [f, H, W, C] to clean latents of a chunk.

        `past` are the latents of the padded context frames `context`; for the first chunk all of them are padding.
        """
