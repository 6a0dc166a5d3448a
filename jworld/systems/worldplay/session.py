"""Step-by-step rollout of the autoregressive model: one chunk of latent frames per call, with retrieved memory.

Source: HY-WorldPlay `hyvideo/pipelines/worldplay_video_pipeline.py`, `_ar_rollout_inner`.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jworld.cameras import memory
from jworld.data import worldplay
from jworld.data.encoders import Encoders
from jworld.diffusion import flow_matching
from jworld.models.autoencoders import linear
from jworld.models.hunyuan.blocks import KeyValues
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import Cache, FrameInputs, HunyuanTransformer


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How to roll out.

    Attributes:
      num_steps: denoising steps per chunk.
      shift: of the sampling times.
      guidance: classifier-free guidance on the text; 1 runs the conditional model only.
      context_time: diffusion time under which clean past latents are shown to the model.
    """

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
      chunk_frames: latent frames per chunk.
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


class Controls(NamedTuple):
    """What the user does during one chunk: action labels [f], w2c [f, 4, 4], normalised intrinsics [f, 3, 3]."""

    action: np.ndarray
    w2c: np.ndarray
    intrinsics: np.ndarray


@nnx.jit
def _text_cache(model: HunyuanTransformer, text: TextInputs) -> Cache:
    return model.text_cache(text, jnp.zeros(text.text.shape[0]))


@nnx.jit
def _context_cache(model: HunyuanTransformer, text: Cache, frames: FrameInputs, frame_mask: jax.Array) -> Cache:
    """Keys of [text, context frames], computed once per chunk."""
    _, own = model.with_cache(frames, text, frame_mask=frame_mask)
    copies = own.layers.keys.shape[3] // text.layers.keys.shape[3]

    def joined(text_part: jax.Array, own_part: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.tile(text_part, (1, 1, 1, copies, 1)), own_part], axis=2)

    layers = KeyValues(
        joined(text.layers.keys, own.layers.keys),
        joined(text.layers.values, own.layers.values),
    )
    return Cache(layers, jnp.concatenate([text.mask, own.mask], axis=1))


def _denoise_chunk(
    model: HunyuanTransformer,
    cache: Cache,
    noise: jax.Array,
    frames: FrameInputs,
    first_position: jax.Array,
    cfg: SampleConfig,
) -> jax.Array:
    """noise [1, f, H, W, C] -> clean latents; `frames.video` holds the condition and mask channels."""
    branches = cache.mask.shape[0]
    sigmas = flow_matching.sampling_sigmas(cfg.num_steps, cfg.shift)
    frame_mask = jnp.ones((branches, noise.shape[1]), bool)

    def step(x: jax.Array, levels: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        sigma, next_sigma = levels
        video = jnp.tile(x, (branches, 1, 1, 1, 1))
        inputs = frames._replace(
            video=jnp.concatenate([video, frames.video], axis=-1),
            timestep=jnp.full(frame_mask.shape, sigma * flow_matching.NUM_TIMESTEPS),
        )
        velocity, _ = model.with_cache(inputs, cache, first_position=first_position, frame_mask=frame_mask)
        if branches == 2:
            unconditional, conditional = velocity[:1], velocity[1:]
            velocity = unconditional + cfg.guidance * (conditional - unconditional)
        return flow_matching.euler_step(x, velocity, sigma, next_sigma), None

    latents, _ = jax.lax.scan(step, noise.astype(jnp.float32), (sigmas[:-1], sigmas[1:]))
    return latents


_denoise = nnx.jit(_denoise_chunk, static_argnames=("cfg",))


class LatentSession:
    """A rollout in latent space. Shapes are fixed, so each of its programs compiles once for any length.

    Past frames are kept on the host, because retrieval may need any of them; device memory does not grow.
    """

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
        self._text = _text_cache(self.model, text)
        self._latents: list[np.ndarray] = []
        self._controls: list[Controls] = []

    @property
    def num_frames(self) -> int:
        """Latent frames generated so far."""
        return len(self._latents) * self.memory.chunk_frames

    def step(self, controls: Controls, noise: np.ndarray | None = None) -> np.ndarray:
        """One chunk: controls for `chunk_frames` latent frames -> latents [chunk_frames, H, W, C] float32.

        Poses are world-to-camera in one world for the whole rollout. `noise` replaces the seeded draw.
        """
        current = self.num_frames
        shape = (1, self.memory.chunk_frames, *self._image.shape[1:])
        if noise is None:
            drawn = jax.random.normal(jax.random.fold_in(self._key, len(self._latents)), shape)
        else:
            drawn = jnp.asarray(noise).reshape(shape)
        self._controls.append(controls)
        selected = self._select(current)
        cache = self._context(selected)
        frames = self._frames(np.arange(current, current + self.memory.chunk_frames))
        latents = _denoise(self.model, cache, drawn, frames, jnp.int32(len(selected)), cfg=self.sample)
        self._latents.append(np.asarray(latents)[0])
        return self._latents[-1]

    def _select(self, current: int) -> list[int]:
        if not self.retrieve:
            return list(range(max(current - self.memory.memory_frames, 0), current))
        return memory.select_memory_frames(
            np.concatenate([c.w2c for c in self._controls]),
            current,
            points=self.points,
            memory_frames=self.memory.memory_frames,
            temporal_context=self.memory.temporal_context,
            chunk=self.memory.chunk_frames,
        )

    def _context(self, selected: list[int]) -> Cache:
        """Cache of the selected frames, padded to `memory_frames` with masked copies of frame 0."""
        padded = np.zeros(self.memory.memory_frames, np.int64)
        padded[: len(selected)] = selected
        frames = self._frames(padded)
        past = np.concatenate(self._latents) if self._latents else np.zeros_like(self._image)
        video = jnp.tile(past[padded][None], (frames.video.shape[0], 1, 1, 1, 1))
        mask = jnp.tile(jnp.arange(len(padded)) < len(selected), (frames.video.shape[0], 1))
        inputs = frames._replace(video=jnp.concatenate([video, frames.video], axis=-1))
        return _context_cache(self.model, self._text, inputs, mask)

    def _frames(self, indices: np.ndarray) -> FrameInputs:
        """Condition channels, context time and controls of the frames `indices`, one row per guidance branch."""
        action, w2c, intrinsics = (np.concatenate(parts)[indices] for parts in zip(*self._controls, strict=True))
        is_first = (indices == 0).astype(np.float32)[:, None, None, None]
        known = np.concatenate([self._image, np.ones_like(self._image[..., :1])], axis=-1)
        branches = self._text.mask.shape[0]
        video, action, w2c, intrinsics = (
            jnp.asarray(np.broadcast_to(x, (branches, *x.shape)), dtype)
            for x, dtype in (
                (known * is_first, jnp.float32),
                (action, jnp.int32),
                (w2c, jnp.float32),
                (intrinsics, jnp.float32),
            )
        )
        timestep = jnp.full((branches, len(indices)), self.sample.context_time)
        return FrameInputs(video, timestep, action, w2c, intrinsics)


class Session:
    """A rollout in pixels: what `generate` and interactive front ends drive."""

    def __init__(self, latents: LatentSession, encoders: Encoders, *, text_tokens: int):
        self.latents, self.encoders, self.text_tokens = latents, encoders, text_tokens

    @property
    def chunk_frames(self) -> int:
        """Latent frames per step."""
        return self.latents.memory.chunk_frames

    def reset(self, first_frame: np.ndarray, prompt: str, *, seed: int = 0) -> None:
        """Start from an image uint8 [H, W, 3] of any size."""
        image_latent, vision = self.encoders.image(first_frame)
        prompts = [prompt] if self.latents.sample.guidance == 1 else ["", prompt]
        rows = [
            worldplay.padded(self.encoders.prompt(text)[: self.text_tokens], self.text_tokens, "text_tokens")
            for text in prompts
        ]
        states, mask = (np.stack(part) for part in zip(*rows, strict=True))
        vision = np.broadcast_to(vision, (len(states), *vision.shape))
        glyph, glyph_mask = self._no_glyphs(len(states))
        inputs = TextInputs(jnp.asarray(states), jnp.asarray(mask), jnp.asarray(vision), glyph, glyph_mask)
        self.latents.reset(image_latent, inputs, seed=seed)

    def step(self, controls: Controls) -> np.ndarray:
        """One chunk -> frames uint8 [T, H, W, 3]: 1 + 4 (f - 1) in the first chunk, 4 f afterwards."""
        first = self.latents.num_frames == 0
        return linear.to_uint8(self.encoders.autoencoder.decode_step(self.latents.step(controls), first=first))

    def _no_glyphs(self, rows: int) -> tuple[jax.Array | None, jax.Array | None]:
        dim = self.latents.model.cfg.glyph_dim
        if dim is None:
            return None, None
        return jnp.zeros((rows, 1, dim)), jnp.zeros((rows, 1), bool)
