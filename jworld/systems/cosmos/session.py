"""Step-by-step generation of a video in pixels, window by window."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jworld.diffusion import step_reports
from jworld.encoders.model_encoders import Encoders
from jworld.models.cosmos.transformer import CosmosTransformer
from jworld.parallel.programs import Program
from jworld.systems import base
from jworld.systems.cosmos import data
from jworld.systems.cosmos.sampling import SampleConfig, WindowSampler


class Session:
    """A `VideoSession`: each step generates a window, which continues the last frames of the previous one."""

    def __init__(self, model: CosmosTransformer, encoders: Encoders, *, sample: SampleConfig, clip: data.ClipConfig):
        self.encoders, self.sample, self.clip = encoders, sample, clip
        self._sampler = WindowSampler(model, sample, fps=encoders.fps)

    @property
    def given_pixels(self) -> int:
        """Number of pixel frames that a window continues."""
        return 1 + self.encoders.autoencoder.temporal_ratio * (self.sample.conditioning_frames - 1)

    def reset(
        self, first_frame: np.ndarray | None, prompt: str, *, seed: int = 0, negative_prompt: str | None = None
    ) -> None:
        """Start from an image uint8 [H, W, 3] of any size, or from the last frames of a video [T, H, W, 3].

        A single image can start a video even if later windows continue more frames.
        """
        frames = base.as_video(first_frame)
        kept = frames[-self.given_pixels :] if len(frames) >= self.given_pixels else frames[-1:]
        self._given = np.stack([self.encoders.resize(frame) for frame in kept])
        self._seed, self._windows = seed, 0
        negative = self.sample.negative_prompt if negative_prompt is None else negative_prompt
        self._text = self._states([negative, prompt] if self.sample.rows == 2 else [prompt])

    def watch(self, listener: step_reports.Listener | None) -> None:
        """See `WatchedSession`."""
        self._sampler.watch(listener)

    def programs(self) -> Iterator[Program]:
        """See `CompiledSession`."""
        cfg = self._sampler.model.cfg
        size = self.clip.action_size
        motion = None if cfg.action_dim is None else (cfg.action_dim // size, size)
        yield self._sampler.program(self._shape, (self.sample.rows, self.clip.text_tokens, cfg.text_dim), motion)

    @property
    def _shape(self) -> tuple[int, ...]:
        """Shape of the latents of a window."""
        return (self.clip.window_frames, *self.clip.latent_size, self._sampler.model.cfg.channels)

    @property
    def new_frames(self) -> int:
        """See `PlannedSession`."""
        ratio = self.encoders.autoencoder.temporal_ratio
        return 1 + ratio * (self.clip.window_frames - 1) - self.given_pixels

    def decoding(self) -> Iterator[Program]:
        """See `PlannedSession`; the encoder runs, too, because a window continues the pixels of the previous one."""
        autoencoder, (height, width) = self.encoders.autoencoder, self.clip.latent_size
        size = (height * autoencoder.spatial_ratio, width * autoencoder.spatial_ratio)
        yield autoencoder.encoding((self.given_pixels, *size, 3))
        yield autoencoder.decoding(self._shape)

    def step(self, action: np.ndarray | None = None) -> np.ndarray:
        """Generate a window and return frames uint8 [T, H, W, 3]: all of the first window, the new ones of later ones.

        `action` is the motion of the window for an action model, [steps, 7] float32.
        """
        return np.concatenate(list(self.decode(self.advance(action))))

    def advance(self, action: np.ndarray | None = None) -> np.ndarray:
        """See `LiveSession`."""
        given = self.encoders.autoencoder.encode(self._given[None])[0]
        shape = (self.clip.window_frames, *self.clip.latent_size, given.shape[-1])
        key = jax.random.fold_in(jax.random.key(self._seed), self._windows)
        return np.asarray(self._sampler(given, self._text, jax.random.normal(key, shape), action))

    def decode(self, latents: np.ndarray) -> Iterator[np.ndarray]:
        """See `LiveSession`; the window's first frames, which it continues, are only returned in the first window."""
        video = self.encoders.autoencoder.decode(latents[None])[0]
        new: np.ndarray = video[len(self._given) :] if self._windows else video
        self._given, self._windows = video[-self.given_pixels :], self._windows + 1
        yield new

    def _states(self, prompts: Sequence[str]) -> jax.Array:
        """Return text states [B, S, Dt], padded with zeros, which are not masked.

        An empty negative prompt is all zeros.
        """
        limit = self.clip.text_tokens
        rows = [self.encoders.prompt(prompt)["text_states"][:limit] for prompt in prompts]
        if len(prompts) == 2 and not prompts[0]:
            rows[0] = rows[0][:0]
        return jnp.stack([np.pad(row, ((0, limit - len(row)), (0, 0))) for row in rows])
