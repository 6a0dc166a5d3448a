"""Generation of an endless stream in pixels, for stages 3 and 4.

Source: The Matrix `stage3/cogvideox/pipeline_streaming.py` and `stage4_ray/inference_ulysses_interactive.py`.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jworld.cameras import actions, driving, lengths
from jworld.diffusion import step_reports, windows
from jworld.encoders.model_encoders import Encoders
from jworld.evaluation import results
from jworld.models.cogvideox.transformer import CogVideoXTransformer
from jworld.parallel.programs import Program
from jworld.systems import sessions
from jworld.systems.matrix import sampling
from jworld.systems.matrix.session import ConditionEncoder, Controls
from jworld.utils import notes

#: Tokens of the frames of the first window, which no action describes: for an image, and for a video.
STANDING, DRIVING = "N", "D"


class StreamSession:
    """A `VideoSession` whose steps each generate a group of frames.

    The state is a window of frames, whose noise increases along the window, and the decoder's cache. So memory and time
    of a step do not depend on the number of steps before.
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
          model: network of stage 3 or 4.
          encoders: encoders of its data.
          sample: settings of the sampler.
          shape: H, W, C of a latent frame.
          table: result of `data.control_table`; None for a model without control.
          alphas: [1000], of the noise schedule.
          mid_clip: the model was trained on windows from the middle of clips. Then the first window must not contain
            the first latent of a clip, which encodes one frame instead of four.
        """
        self.encoders, self.sample, self.shape = encoders, sample, shape
        self._mid_clip, self._is_steered = mid_clip, table is not None
        self._condition_encoder = ConditionEncoder(encoders, model.cfg, sample, table)
        self._sampler = sampling.StreamSampler(model, sample, alphas)

    @property
    def is_steered(self) -> bool:
        """True if the model has control tokens."""
        return self._is_steered

    @property
    def window_frames(self) -> int:
        """Latent frames of a window, including the context frame."""
        return self._sampler.frames

    @property
    def first_latent(self) -> int:
        """Index of the first latent of the initial clip that the stream generates again."""
        return 1 + self._mid_clip

    @property
    def start_frames(self) -> int:
        """Pixel frames that the first window needs."""
        return start_frames(self.sample, mid_clip=self._mid_clip, ratio=self._ratio)

    @property
    def delay(self) -> int:
        """Steps from a key press to the first frame that shows it, the step of the key press included."""
        return self.sample.groups

    @property
    def _ratio(self) -> int:
        return self.encoders.autoencoder.temporal_ratio

    def reset(
        self, first_frame: np.ndarray | None, prompt: str, *, seed: int = 0, negative_prompt: str | None = None
    ) -> None:
        """Start from an image uint8 [H, W, 3] of any size, or from a video [T, H, W, 3].

        The first window is made of the last `start_frames` frames. If there are fewer, the first one is repeated. The
        stream generates them again, from `first_latent` on.
        """
        given = sessions.as_video(first_frame)[-self.start_frames :]
        frames = np.stack([self.encoders.resize(frame) for frame in given])
        still = np.repeat(frames[:1], self.start_frames - len(frames), axis=0)
        latents = self.encoders.autoencoder.encode(np.concatenate([still, frames])[None])
        count = self._sampler.frames
        self._before: np.ndarray | None = latents[0, : 1 - count]
        self._tokens = (STANDING if len(frames) == 1 else DRIVING,) * count
        self._key, self._steps = jax.random.key(seed), 0
        window = jnp.asarray(latents[:, -count:])
        self._sampler.reset(window, draw(self._key, 0, (1, count, *self.shape)))
        self._decoder = self.encoders.autoencoder.stream()
        self._negative_prompt = negative_prompt
        self.describe(prompt)

    def watch(self, listener: step_reports.Listener | None) -> None:
        """See `WatchedSession`."""
        self._sampler.watch(listener)

    def programs(self) -> Iterator[Program]:
        """See `CompiledSession`."""
        yield self._sampler.program(self.shape, self._condition_encoder.described(self._sampler.frames))

    @property
    def new_frames(self) -> int:
        """See `PlannedSession`."""
        return self._ratio * self.sample.window_frames

    def decoding(self) -> Iterator[Program]:
        """See `PlannedSession`."""
        # As in `decode`, without the single latent after pairs.
        size = self.sample.window_frames
        piece = min(2, size) if size % 2 else size
        return self.encoders.autoencoder.streaming((piece, *self.shape), runs=size // piece)

    def describe(self, prompt: str) -> None:
        """Change the caption of the running stream."""
        self._text = self._condition_encoder.text(prompt, self._negative_prompt)

    def step(self, action: Controls | str) -> np.ndarray:
        """Generate a window and return frames uint8 [T, H, W, 3], 4 for each latent frame of a group.

        Args:
          action: tokens of all latent frames in the current window, or one token that is held. A held token applies to
            the frames that enter the window, which are returned `delay` steps later.
        """
        return np.concatenate(list(self.decode(self.advance(action))))

    def decode(self, latents: np.ndarray) -> Iterator[np.ndarray]:
        """See `LiveSession`: 4 f frames in all."""
        # CogVideoX's autoencoder treats the first of an odd number of latents as the first of a clip: decode pairs.
        count = len(latents)
        parts = [latents[i : i + 2] for i in range(0, count, 2)] if count % 2 else [latents]
        if self._before is not None:
            # With these latents first, the decoder treats the next ones as the middle of a video.
            parts, self._before = [np.concatenate([self._before, latents])], None
        for part in parts:
            yield self._decoder.step(part)[-self._ratio * min(len(part), count) :]

    def advance(self, action: Controls | str) -> np.ndarray:
        """Generate a window without decoding and return latents [window_frames, H, W, C]."""
        sampler, size = self._sampler, self.sample.window_frames
        if isinstance(action, str):
            self._tokens = (*self._tokens[size:], *driving.parse(action) * size)
        else:
            self._tokens = action.tokens
        number = 2 * self._steps
        step_noise = draw(self._key, number + 1, (len(sampler.rows), 1, sampler.frames - 1, *self.shape))
        new_noise = draw(self._key, number + 2, (1, size, *self.shape))
        conditions = self._condition_encoder.conditions(self._text, self._tokens)
        emitted = sampler.step(conditions, step_noise, new_noise)
        self._steps += 1
        latent: np.ndarray = np.asarray(emitted)[0]
        return latent


@functools.partial(jax.jit, static_argnames="shape")
def draw(key: jax.Array, number: int, shape: tuple[int, ...]) -> jax.Array:
    """Draw standard normal noise; every use has its own `number`."""
    return jax.random.normal(jax.random.fold_in(key, number), shape)


def start_frames(sample: sampling.SampleConfig, *, mid_clip: bool, ratio: int = actions.FRAMES_PER_LATENT) -> int:
    """Return the pixel frames that the first window of a stream needs; see `StreamSession` for `mid_clip`."""
    return 1 + ratio * (windows.frames(sample.groups, sample.window_frames) - 1 + mid_clip)


def script(tokens: tuple[str, ...], sample: sampling.SampleConfig, length: str | None = None) -> list[results.Action]:
    """Return the action of every step of a stream, from the tokens of all latent frames that it emits.

    A script is known in advance, unlike live key presses. So every frame has its own token as soon as it enters the
    window. One token more than whole windows is the original's counting: the first belongs to the given frame.

    Raises:
      UserError: the tokens do not fill whole windows and `length` is None, see `cameras.lengths`.
    """
    size, frames = sample.window_frames, 1 + sample.groups * sample.window_frames
    first = tokens[0]
    if len(tokens) > size > 1 and len(tokens) % size == 1:
        notes.note(
            f"--actions has {len(tokens)} tokens: the first one belongs to the given frame, as in the original, and "
            f"the stream has {len(tokens) - 1} latents"
        )
        tokens = tokens[1:]
    count = lengths.whole(len(tokens), size, length, where="--actions", unit="latents", chunk="window")
    tokens = driving.filled(tokens, count)
    # The first frame of a window precedes those that it emits.
    padded = driving.filled((first, *tokens), len(tokens) + frames)
    return [
        results.Action(control=Controls(padded[k : k + frames]), name=driving.named(tokens[k : k + size]))
        for k in range(0, len(tokens), size)
    ]
