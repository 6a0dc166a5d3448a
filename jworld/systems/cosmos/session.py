"""Step-by-step generation of a video in pixels, window by window."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jworld.data import camera_grids
from jworld.diffusion import step_reports
from jworld.encoders.model_encoders import Encoders
from jworld.models.cosmos.transformer import CosmosTransformer
from jworld.parallel.programs import Program
from jworld.systems import sessions
from jworld.systems.cosmos import data
from jworld.systems.cosmos.sampling import SampleConfig, WindowSampler


class Session:
    """A `VideoSession`: each step generates a window, which continues the last frames of the previous one.

    Frames of several cameras are a grid, see `camera_grids`.
    """

    def __init__(self, model: CosmosTransformer, encoders: Encoders, *, sample: SampleConfig, clip: data.ClipConfig):
        self.encoders, self.sample, self.clip = encoders, sample, clip
        self._sampler = WindowSampler(model, sample, fps=encoders.fps, view_ids=clip.view_ids)

    @property
    def given_pixels(self) -> int:
        """Number of pixel frames that a window continues."""
        return 1 + self.encoders.autoencoder.temporal_ratio * (self.sample.conditioning_frames - 1)

    def reset(
        self, first_frame: np.ndarray | None, prompt: str, *, seed: int = 0, negative_prompt: str | None = None
    ) -> None:
        """Start from an image uint8 [H, W, 3] of any size, or from the last frames of a video [T, H, W, 3].

        A single image can start a video even if later windows continue more frames. With several cameras images are
        grids, and a prompt of as many lines as cameras has one for each; otherwise it is that of every captioned one.
        """
        frames = sessions.as_video(first_frame)
        kept = frames[-self.given_pixels :] if len(frames) >= self.given_pixels else frames[-1:]
        views = camera_grids.split(kept, self.clip.cameras)
        self._given = np.stack([[self.encoders.resize(frame) for frame in view] for view in views])
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
        tokens = self.clip.cameras * self.clip.text_tokens
        yield self._sampler.program(self._shape, (self.sample.rows, tokens, cfg.text_dim), motion)

    @property
    def _shape(self) -> tuple[int, ...]:
        """Shape of the latents of a window, of all cameras."""
        return (self.clip.cameras * self.clip.window_frames, *self.clip.latent_size, self._sampler.model.cfg.channels)

    @property
    def new_frames(self) -> int:
        """See `PlannedSession`."""
        ratio = self.encoders.autoencoder.temporal_ratio
        return 1 + ratio * (self.clip.window_frames - 1) - self.given_pixels

    def decoding(self) -> Iterator[Program]:
        """See `PlannedSession`; the encoder runs, too, because a window continues the pixels of the previous one."""
        autoencoder, (height, width) = self.encoders.autoencoder, self.clip.latent_size
        size = (height * autoencoder.spatial_ratio, width * autoencoder.spatial_ratio)
        latents = (self.clip.window_frames, *self._shape[1:])
        for program in (autoencoder.encoding((self.given_pixels, *size, 3)), autoencoder.decoding(latents)):
            yield program if self.clip.cameras == 1 else dataclasses.replace(program, runs=self.clip.cameras)

    def step(self, action: np.ndarray | None = None) -> np.ndarray:
        """Generate a window and return frames uint8 [T, H, W, 3]: all of the first window, the new ones of later ones.

        `action` is the motion of the window for an action model, [steps, 7] float32.
        """
        return np.concatenate(list(self.decode(self.advance(action))))

    def advance(self, action: np.ndarray | None = None) -> np.ndarray:
        """See `LiveSession`."""
        # Cameras are encoded and decoded one after the other, which bounds the memory.
        given = np.concatenate([self.encoders.autoencoder.encode(view[None]) for view in self._given])
        shape = (self.clip.cameras * self.clip.window_frames, *self.clip.latent_size, given.shape[-1])
        key = jax.random.fold_in(jax.random.key(self._seed), self._windows)
        return np.asarray(self._sampler(given, self._text, jax.random.normal(key, shape), action))

    def decode(self, latents: np.ndarray) -> Iterator[np.ndarray]:
        """See `LiveSession`; the window's first frames, which it continues, are only returned in the first window."""
        views = np.split(latents, self.clip.cameras)
        video = np.concatenate([self.encoders.autoencoder.decode(view[None]) for view in views])
        new = video[:, self._given.shape[1] :] if self._windows else video
        self._given, self._windows = video[:, -self.given_pixels :], self._windows + 1
        yield camera_grids.join(new)

    def reconstruct(self, frames: np.ndarray) -> np.ndarray:
        """Encode and decode the frames [T, H, W, 3] of a video, camera by camera."""
        autoencoder = self.encoders.autoencoder
        views = camera_grids.split(frames, self.clip.cameras)
        return camera_grids.join(np.concatenate([autoencoder.decode(autoencoder.encode(view[None])) for view in views]))

    def _states(self, prompts: Sequence[str]) -> jax.Array:
        """Return text states [B, S, Dt], padded with zeros, which are not masked; with V cameras V * S.

        An empty negative prompt is all zeros, and so is the text of a camera without a caption.
        """
        limit = self.clip.text_tokens
        if self.clip.views:
            return jnp.stack([np.concatenate([self._view_states(text) for text in self._lines(p)]) for p in prompts])
        rows = [self.encoders.prompt(prompt)["text_states"][:limit] for prompt in prompts]
        if len(prompts) == 2 and not prompts[0]:
            rows[0] = rows[0][:0]
        return jnp.stack([np.pad(row, ((0, limit - len(row)), (0, 0))) for row in rows])

    def _lines(self, prompt: str) -> list[str]:
        """Return the captions of the cameras: a line each, or the same text; "" for those without."""
        lines, captioned = prompt.split("\n"), self.clip.captioned
        texts = lines if len(lines) == len(captioned) else [prompt] * len(captioned)
        return [text if kept else "" for text, kept in zip(texts, captioned, strict=True)]

    def _view_states(self, text: str) -> np.ndarray:
        states = np.zeros((self.clip.text_tokens, self._sampler.model.cfg.text_dim), np.float32)
        if text.strip():
            own = self.encoders.prompt(text)["text_states"][: self.clip.text_tokens]
            states[: len(own)] = own
        return states
