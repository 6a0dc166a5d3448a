"""Generation of clips in pixels, each as a whole from a caption, for stages 1 and 2."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jworld.cameras import driving
from jworld.diffusion import step_reports, v_prediction
from jworld.encoders.model_encoders import Encoders
from jworld.models.cogvideox.config import CogVideoXConfig
from jworld.models.cogvideox.transformer import CogVideoXTransformer
from jworld.parallel import axes
from jworld.parallel.programs import Program
from jworld.systems.matrix.sampling import ClipSampler, Conditions, SampleConfig


class Controls(NamedTuple):
    """Input of a model with control: a driving token per latent frame; the last one is held."""

    tokens: tuple[str, ...]


class ConditionEncoder:
    """Encoder of prompts and driving tokens into the network's conditioning."""

    def __init__(
        self, encoders: Encoders, cfg: CogVideoXConfig, sample: SampleConfig, table: np.ndarray | None
    ) -> None:
        """Set up the encoder; `table` is from `data.control_table`, None for a model without control."""
        self._encoders, self._cfg, self._sample, self._table = encoders, cfg, sample, table

    def text(self, prompt: str, negative_prompt: str | None = None) -> jax.Array:
        """Return text states [1, L, Dt], or [2, L, Dt] with the negative prompt first if there is guidance.

        They are cropped or padded with zeros to the model's `text_tokens`. `negative_prompt` replaces that of the
        config.
        """
        limit = self._cfg.text_tokens
        negative = self._sample.negative_prompt if negative_prompt is None else negative_prompt
        prompts = [prompt] if self._sample.guidance == 1 else [negative, prompt]
        rows = [self._encoders.prompt(each)["text_states"][:limit] for each in prompts]
        return jnp.stack([np.pad(row, ((0, limit - len(row)), (0, 0))) for row in rows])

    def conditions(self, text: jax.Array, tokens: Sequence[str]) -> Conditions:
        """Return the conditioning for a result of `text` and F driving tokens, which need a model with control."""
        if self._table is None:
            return Conditions(text, None)
        control = jnp.asarray(self._table[[driving.TOKENS.index(token) for token in tokens]])[None]
        return Conditions(text, control, self._table[-1] if self._sample.control_guidance != 1 else None)

    def described(self, frames: int) -> Conditions:
        """Return the shapes of the conditioning of so many frames."""
        cfg, rows = self._cfg, 1 if self._sample.guidance == 1 else 2
        text = axes.described((rows, cfg.text_tokens, cfg.text_dim))
        if self._table is None:
            return Conditions(text, None)
        control = axes.described((1, frames, self._table.shape[-1]), self._table.dtype)
        return Conditions(text, control, self._table[-1] if self._sample.control_guidance != 1 else None)


class ClipSession:
    """A `VideoSession` whose steps each generate a whole clip of the prompt."""

    def __init__(
        self,
        model: CogVideoXTransformer,
        encoders: Encoders,
        *,
        sample: SampleConfig,
        shape: tuple[int, int, int, int],
        table: np.ndarray | None,
        alphas: np.ndarray,
    ):
        """Open a session.

        Args:
          model: network of stage 1 or 2.
          encoders: encoders of its data.
          sample: settings of the sampler.
          shape: F, H, W, C of a clip's latents.
          table: result of `data.control_table`; None for a model without control.
          alphas: [1000], of the noise schedule.
        """
        self.encoders, self.sample, self.shape, self._alphas = encoders, sample, shape, alphas
        self._condition_encoder = ConditionEncoder(encoders, model.cfg, sample, table)
        self._sampler = ClipSampler(model, sample, alphas)

    @property
    def latents(self) -> int:
        """Number of latent frames of a clip."""
        return self.shape[0]

    def reset(
        self, first_frame: np.ndarray | None, prompt: str, *, seed: int = 0, negative_prompt: str | None = None
    ) -> None:
        """Set the caption. The model generates clips from text alone, so `first_frame` is not used."""
        self._seed, self._clips = seed, 0
        self._text = self._condition_encoder.text(prompt, negative_prompt)

    def watch(self, listener: step_reports.Listener | None) -> None:
        """See `WatchedSession`."""
        self._sampler.watch(listener)

    def programs(self) -> Iterator[Program]:
        """See `CompiledSession`."""
        yield self._sampler.program(self.shape, self._condition_encoder.described(self.latents))

    @property
    def new_frames(self) -> int:
        """See `PlannedSession`."""
        return 1 + self.encoders.autoencoder.temporal_ratio * (self.latents - 1)

    def decoding(self) -> Iterator[Program]:
        """See `PlannedSession`."""
        yield self.encoders.autoencoder.decoding(self.shape)

    def step(self, action: Controls | None = None) -> np.ndarray:
        """Generate a clip, uint8 [1 + 4 (F - 1), H, W, 3]."""
        return self._decoded(self._sample(self._noise(0), action, start=0))

    def restore(self, frames: np.ndarray, action: Controls | None, *, start: int) -> np.ndarray:
        """Add noise to a clip uint8 [T, H, W, 3] up to step `start` of sampling, and sample from there.

        The remaining signal determines the clip, so that the result can be compared with the recording.
        """
        clean = jnp.asarray(self.encoders.autoencoder.encode(frames[None]), jnp.float32)
        a = v_prediction.at(self._alphas, self.sample.timesteps()[start : start + 1])
        return self._decoded(self._sample(v_prediction.add_noise(clean, self._noise(0), a), action, start=start))

    def _sample(self, initial: jax.Array, action: Controls | None, *, start: int) -> jax.Array:
        tokens = () if action is None else driving.filled(action.tokens, self.latents)
        conditions = self._condition_encoder.conditions(self._text, tokens)
        latents = self._sampler(initial, conditions, lambda i: self._noise(1 + i), start=start)
        self._clips += 1
        return latents

    def _noise(self, number: int) -> jax.Array:
        """Return standard normal noise [1, F, H, W, C]: `number` is 0 for the start, and from 1 on for the steps."""
        key = jax.random.fold_in(jax.random.key(self._seed), self._clips)
        return jax.random.normal(jax.random.fold_in(key, number), (1, *self.shape))

    def _decoded(self, latents: jax.Array) -> np.ndarray:
        video: np.ndarray = self.encoders.autoencoder.decode(np.asarray(latents))[0]
        return video
