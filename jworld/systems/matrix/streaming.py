"""The endless stream in pixels: what `generate` and interactive front ends drive in stages 3 and 4.

Source: The Matrix `stage3/cogvideox/pipeline_streaming.py` and `stage4_ray/inference_ulysses_interactive.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jworld.cameras import driving
from jworld.encoders.model_encoders import Encoders
from jworld.evaluation import results
from jworld.models.cogvideox.transformer import CogVideoXTransformer
from jworld.systems.matrix import sampling
from jworld.systems.matrix.session import Controls, Encoded
from jworld.utils import errors

#: What the frames of the first window are told where nobody says: those of a picture, and those of a video.
STANDING, DRIVING = "N", "D"


class StreamSession:
    """First frames and prompt in, then a group of frames per step, for as long as one likes.

    A window of frames whose noise grows with their distance is all that is remembered, with the decoder's cache: memory
    and time of a step do not depend on how many came before.
    """

    def __init__(
        self,
        model: CogVideoXTransformer,
        encoders: Encoders,
        *,
        sample: sampling.SampleConfig,
        shape: tuple[int, int, int],
        table: np.ndarray | None,
        alphas: np.ndarray,
        mid_clip: bool,
    ):
        """Open a stream.

        Args:
          model: of stage 3 or 4.
          encoders: of its data.
          sample: how windows are sampled.
          shape: H, W, C of a latent frame.
          table: as of `data.matrix.control_table`.
          alphas: [1000] of the noise schedule.
          mid_clip: the model was trained on windows from the middle of clips, so that no latent of the first window
            may be a clip's first, which holds one frame instead of four.
        """
        self.encoders, self.sample, self.shape = encoders, sample, shape
        self._mid_clip = mid_clip
        self._encoded = Encoded(encoders, model.cfg, sample, table)
        self._sampler = sampling.StreamSampler(model, sample, alphas)

    @property
    def window_frames(self) -> int:
        """Latent frames of a window, with the given one."""
        return self._sampler.frames

    @property
    def first_latent(self) -> int:
        """Which latent of the clip that it starts from a stream shows first, made anew."""
        return 1 + self._mid_clip

    @property
    def start_frames(self) -> int:
        """Pixel frames that the first window is made of."""
        return 1 + self._ratio * (self._sampler.frames - 1 + self._mid_clip)

    @property
    def delay(self) -> int:
        """Steps from a held key to its first frame, that of the step itself included."""
        return self.sample.groups

    @property
    def _ratio(self) -> int:
        return self.encoders.autoencoder.temporal_ratio

    def reset(self, first_frame: np.ndarray, prompt: str, *, seed: int = 0) -> None:
        """Start from an image uint8 [H, W, 3] of any size, which stands still at first, or a video [T, H, W, 3].

        Of a video the last `start_frames` frames count, or the first one stands still before the others. The stream
        begins with them, made anew, from the second latent frame on.
        """
        given = first_frame[None] if first_frame.ndim == 3 else first_frame[-self.start_frames :]
        frames = np.stack([self.encoders.fit.frame(frame) for frame in given])
        still = np.repeat(frames[:1], self.start_frames - len(frames), axis=0)
        latents = self.encoders.autoencoder.encode(np.concatenate([still, frames])[None])
        count = self._sampler.frames
        self._before: np.ndarray | None = latents[0, : 1 - count]
        self._tokens = (STANDING if len(frames) == 1 else DRIVING,) * count
        self._key, self._steps = jax.random.key(seed), 0
        window = jnp.asarray(latents[:, -count:])
        self._sampler.reset(window, draw(self._key, 0, (1, count, *self.shape)))
        self._decoder = self.encoders.autoencoder.stream()
        self.describe(prompt)

    def describe(self, prompt: str) -> None:
        """Another caption; the stream goes on."""
        self._text = self._encoded.text(prompt)

    def step(self, action: Controls | str) -> np.ndarray:
        """One window -> frames uint8 [T, H, W, 3], 4 for each latent frame of a group.

        Args:
          action: the tokens of all latent frames that are in the window now, or one that is held: it is told of the
            frames that enter the window, which are shown `delay` steps later.
        """
        return self.decode(self.advance(action))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents [f, H, W, C], behind all that were decoded before -> frames uint8 [4 f, H, W, 3]."""
        # Two latents at a time: the autoencoder of CogVideoX takes the first of an odd number for a clip's first.
        count = len(latents)
        parts = [latents[i : i + 2] for i in range(0, count, 2)] if count % 2 else [latents]
        if self._before is not None:
            # What the decoder must have seen to take the next latents for the middle of a video.
            parts, self._before = [np.concatenate([self._before, latents])], None
        frames = np.concatenate([self._decoder.step(part) for part in parts])
        return frames[-self._ratio * count :]

    def advance(self, action: Controls | str) -> np.ndarray:
        """One step without pixels -> latents [window_frames, H, W, C]."""
        sampler, size = self._sampler, self.sample.window_frames
        if isinstance(action, str):
            self._tokens = (*self._tokens[size:], *driving.parse(action) * size)
        else:
            self._tokens = action.tokens
        number = 2 * self._steps
        step_noise = draw(self._key, number + 1, (len(sampler.rows), 1, sampler.frames - 1, *self.shape))
        new_noise = draw(self._key, number + 2, (1, size, *self.shape))
        told = self._encoded.conditions(self._text, self._tokens)
        emitted = sampler.step(told, step_noise, new_noise)
        self._steps += 1
        return np.asarray(emitted)[0]


@functools.partial(jax.jit, static_argnames="shape")
def draw(key: jax.Array, number: int, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise of one use."""
    return jax.random.normal(jax.random.fold_in(key, number), shape)


def script(tokens: tuple[str, ...], sample: sampling.SampleConfig) -> list[results.Action]:
    """Tokens of all latent frames that a stream emits -> what it is told, step by step.

    Unlike a key that is held now, a script is known ahead: every frame is told its own token from the start.

    Raises:
      UserError: they do not fill whole windows.
    """
    size, frames = sample.window_frames, 1 + sample.groups * sample.window_frames
    if len(tokens) % size:
        raise errors.UserError(
            f"--actions has {len(tokens)} latents, and {size} are made together: add {-len(tokens) % size} latents"
        )
    # The first frame of a window is the one before those that it emits.
    padded = driving.filled((tokens[0], *tokens), len(tokens) + frames)
    return [
        results.Action(control=Controls(padded[k : k + frames]), name=driving.named(tokens[k : k + size]))
        for k in range(0, len(tokens), size)
    ]
