"""Rollouts in latent space: what both models share. One chunk per call, after the past frames that it may look at.

Source: HY-WorldPlay `hyvideo/pipelines/worldplay_video_pipeline.py`.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jworld.cameras import memory
from jworld.diffusion import flow_matching
from jworld.evaluation.held_out import Controls
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import FrameInputs, HunyuanTransformer
from jworld.systems.worldplay import objective

Array = np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How to roll out (`config.sample.rollout`).

    Attributes:
      mode: which model the weights are. The autoregressive one continues one training chunk at a time, with the keys
        of text and past kept; the bidirectional one continues four at a time, all tokens looking at each other.
      num_steps: denoising steps per chunk; few-step distilled weights take 4.
      shift: of the sampling times.
      guidance: classifier-free guidance on the text; 1 runs the conditional model only, as distilled weights want.
      context_time: diffusion time under which clean past latents are shown to the model.
    """

    mode: Literal["autoregressive", "bidirectional"] = "autoregressive"
    num_steps: int = 50
    shift: float = 5.0
    guidance: float = 6.0
    context_time: float = 14.0

    def __post_init__(self) -> None:
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}, must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """Which past frames a chunk sees: the first chunk, retrieved chunks and the latest `temporal_context` frames.

    Attributes:
      chunk_frames: latent frames per training chunk.
      memory_frames: past frames in all.
      temporal_context: the latest of them.
    """

    chunk_frames: int = 4
    memory_frames: int = 20
    temporal_context: int = 12

    def __post_init__(self) -> None:
        for name in ("memory_frames", "temporal_context"):
            if getattr(self, name) % self.chunk_frames:
                raise ValueError(f"{name} {getattr(self, name)} is not a multiple of chunk_frames {self.chunk_frames}")


class Frames(NamedTuple):
    """Some latent frames of a rollout, as the model is told of them.

    Attributes:
      number: [F] int32, which frames of the rollout they are.
      position: [F] int32, where in time the model sees them.
      valid: [F] bool, False for padding.
      action, w2c, intrinsics: see `Controls`.
    """

    number: Array
    position: Array
    valid: Array
    action: Array
    w2c: Array
    intrinsics: Array


def frame_inputs(frames: Frames, latents: Array, image: Array, times: jax.Array | float, rows: int) -> FrameInputs:
    """The same frames for each of `rows` texts.

    latents [F, H, W, C], image [1, H, W, C] of the first frame, times [F] or one for all.
    """
    known = objective.condition_video(jnp.asarray(image)[None], frames.number == 0)[0]

    def repeated(x: Array) -> jax.Array:
        return jnp.broadcast_to(x, (rows, *x.shape))

    return FrameInputs(
        repeated(jnp.concatenate([latents.astype(jnp.float32), known], axis=-1)),
        repeated(jnp.broadcast_to(jnp.asarray(times, jnp.float32), frames.number.shape)),
        repeated(frames.action),
        repeated(frames.w2c),
        repeated(frames.intrinsics),
        position=jnp.asarray(frames.position),
        mask=repeated(frames.valid),
    )


def denoise(velocity: Callable[[jax.Array, jax.Array], jax.Array], noise: jax.Array, cfg: SampleConfig) -> jax.Array:
    """Noise [f, H, W, C] -> clean latents, float32.

    `velocity` of (latents [f, H, W, C], time) has one row, or two: without and with the text, for guidance.
    """
    sigmas = flow_matching.sampling_sigmas(cfg.num_steps, cfg.shift)

    def step(x: jax.Array, levels: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        sigma, next_sigma = levels
        rows = velocity(x, sigma * flow_matching.NUM_TIMESTEPS)
        guided = rows[0] if len(rows) == 1 else rows[0] + cfg.guidance * (rows[1] - rows[0])
        return flow_matching.euler_step(x, guided, sigma, next_sigma), None

    latents, _ = jax.lax.scan(step, noise.astype(jnp.float32), (sigmas[:-1], sigmas[1:]))
    return latents


@functools.partial(jax.jit, static_argnames="shape")
def draw_noise(key: jax.Array, chunk: int, shape: tuple[int, ...]) -> jax.Array:
    """The noise of one chunk of a rollout, of whatever length that becomes."""
    return jax.random.normal(jax.random.fold_in(key, chunk), shape)


class Growing:
    """One array that grows by rows; its room doubles, so that a row is copied a constant number of times."""

    def __init__(self, shape: tuple[int, ...], dtype: type) -> None:
        self._room: np.ndarray = np.empty((1, *shape), dtype)
        self._count = 0

    @property
    def rows(self) -> np.ndarray:
        return self._room[: self._count]

    def append(self, rows: np.ndarray) -> None:
        needed = self._count + len(rows)
        if needed > len(self._room):
            room = np.empty((2 * needed, *self._room.shape[1:]), self._room.dtype)
            room[: self._count] = self.rows
            self._room = room
        self._room[self._count : needed] = rows
        self._count = needed


class LatentSession(abc.ABC):
    """A rollout in latent space. Shapes are fixed, so each of its programs compiles once for any length.

    Past frames are kept on the host, because retrieval may need any of them; device memory does not grow.
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
        """`points` are the Monte-Carlo points of memory selection; `retrieve=False` shows only the latest frames."""
        self.model, self.sample, self.memory, self.points = model, sample, memory_config, points
        self.retrieve = retrieve
        self.chunk_frames = self.training_chunks * memory_config.chunk_frames
        # Each training chunk retrieves for itself; the first chunk and the latest frames are common to all.
        retrieved = memory_config.memory_frames - memory_config.temporal_context - memory_config.chunk_frames
        self.context_frames = memory_config.memory_frames + (self.training_chunks - 1) * retrieved

    def reset(self, image_latent: np.ndarray, text: TextInputs, *, seed: int = 0) -> None:
        """Start from a first frame.

        Args:
          image_latent: [1, H, W, C] latent of the first frame.
          text: batch 1, or batch 2 [unconditional, conditional] where guidance is not 1.
          seed: of the noise.
        """
        expected = 1 if self.sample.guidance == 1 else 2
        rows = text.text.shape[0]
        if rows != expected:
            raise ValueError(f"guidance {self.sample.guidance} needs text of batch {expected}, got {rows}")
        self._image = np.asarray(image_latent, np.float32)
        self._key = jax.random.key(seed)
        self._latents = Growing(self._image.shape[1:], np.float32)
        self._action = Growing((), np.int32)
        self._w2c = Growing((4, 4), np.float64)
        self._intrinsics = Growing((3, 3), np.float32)
        self._begin(text)

    @property
    def num_frames(self) -> int:
        """Latent frames generated so far."""
        return len(self._latents.rows)

    @property
    def last_w2c(self) -> np.ndarray:
        """[4, 4] float64: the camera of the latest frame."""
        return self._w2c.rows[-1]

    def step(self, controls: Controls, noise: np.ndarray | None = None) -> np.ndarray:
        """One chunk: controls for `chunk_frames` latent frames -> latents [chunk_frames, H, W, C] float32.

        Poses are world-to-camera in one world for the whole rollout. `noise` replaces the seeded draw.
        """
        if len(controls.action) != self.chunk_frames:
            raise ValueError(f"controls of {len(controls.action)} latents, expected {self.chunk_frames}")
        current = self.num_frames
        shape = (self.chunk_frames, *self._image.shape[1:])
        if noise is None:
            drawn = draw_noise(self._key, current // self.chunk_frames, shape)
        else:
            drawn = jnp.asarray(noise, jnp.float32).reshape(shape)
        for rows, values in zip((self._action, self._w2c, self._intrinsics), controls, strict=True):
            rows.append(values)
        selected = self.select(current)
        chunk = self._frames(np.arange(current, current + self.chunk_frames), first_position=len(selected))
        latents = np.asarray(self._denoise(drawn, *self._context(selected), chunk))
        self._latents.append(latents)
        return latents

    def select(self, current: int) -> list[int]:
        """Sorted indices of the past frames that the chunk at frame `current`, whose poses are known, looks at."""
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
                )
            )
        return sorted(index for index in chosen if index < current)

    def _context(self, selected: list[int]) -> tuple[np.ndarray, Frames]:
        """The selected frames and their latents, padded to `context_frames` with masked copies of frame 0."""
        padded = np.zeros(self.context_frames, np.int64)
        padded[: len(selected)] = selected
        past = self._latents.rows if selected else np.zeros_like(self._image)
        return past[padded], self._frames(padded, valid=len(selected))

    def _frames(self, numbers: np.ndarray, *, first_position: int = 0, valid: int | None = None) -> Frames:
        """What the model is told of frames of the rollout; only the first `valid` of them count."""
        order = np.arange(len(numbers), dtype=np.int32)
        return Frames(
            number=numbers.astype(np.int32),
            position=order + np.int32(first_position),
            valid=order < (len(numbers) if valid is None else valid),
            action=self._action.rows[numbers],
            w2c=self._w2c.rows[numbers].astype(np.float32),
            intrinsics=self._intrinsics.rows[numbers],
        )

    @abc.abstractmethod
    def _begin(self, text: TextInputs) -> None:
        """Prepare what every chunk needs of the text."""

    @abc.abstractmethod
    def _denoise(self, noise: jax.Array, past: np.ndarray, context: Frames, chunk: Frames) -> jax.Array:
        """Noise [f, H, W, C] -> clean latents of a chunk.

        `past` are the latents of `context`, the frames it may look at; padded, in the first chunk nothing but padding.
        """
