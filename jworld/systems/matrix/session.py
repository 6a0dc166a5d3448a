"""Clips in pixels, each made as a whole of a caption: what `generate` and front ends drive in stages 1 and 2."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jworld.cameras import driving
from jworld.diffusion import v_prediction
from jworld.encoders.model_encoders import Encoders
from jworld.models.cogvideox.config import CogVideoXConfig
from jworld.models.cogvideox.transformer import CogVideoXTransformer
from jworld.systems.matrix.sampling import ClipSampler, Conditions, SampleConfig


class Controls(NamedTuple):
    """What a model with control is told: a driving token per latent frame; the last one is held."""

    tokens: tuple[str, ...]


class Encoded:
    """Prompts and driving tokens -> what the network reads of them."""

    def __init__(
        self, encoders: Encoders, cfg: CogVideoXConfig, sample: SampleConfig, table: np.ndarray | None
    ) -> None:
        """`table` as of `data.matrix.control_table`; None for a model without control."""
        self._encoders, self._cfg, self._sample, self._table = encoders, cfg, sample, table

    def text(self, prompt: str) -> jax.Array:
        """[1, L, Dt], or [2, L, Dt] with the negative prompt first where there is guidance.

        Cut, or filled with zeros, to the length that the model's positions begin after.
        """
        limit = self._cfg.text_tokens
        prompts = [prompt] if self._sample.guidance == 1 else ["", prompt]
        rows = [self._encoders.prompt(each)["text_states"][:limit] for each in prompts]
        return jnp.stack([np.pad(row, ((0, limit - len(row)), (0, 0))) for row in rows])

    def conditions(self, text: jax.Array, tokens: Sequence[str]) -> Conditions:
        """Of what `text` gave and of F tokens, which a model without control is not told."""
        if self._table is None:
            return Conditions(text, None)
        control = jnp.asarray(self._table[[driving.TOKENS.index(token) for token in tokens]])[None]
        return Conditions(text, control, self._table[-1] if self._sample.control_guidance != 1 else None)


class ClipSession:
    """Prompt in, then a clip per step."""

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
        """`shape` is F, H, W, C of a clip's latents; `table` as of `data.matrix.control_table`."""
        self.encoders, self.sample, self.shape, self._alphas = encoders, sample, shape, alphas
        self._encoded = Encoded(encoders, model.cfg, sample, table)
        self._sampler = ClipSampler(model, sample, alphas)

    @property
    def latents(self) -> int:
        """Latent frames of a clip."""
        return self.shape[0]

    def reset(self, first_frame: np.ndarray | None, prompt: str, *, seed: int = 0) -> None:
        """Set the caption. The model makes clips of text alone: a first frame is not used."""
        self._seed, self._clips = seed, 0
        self._text = self._encoded.text(prompt)

    def step(self, action: Controls | None = None) -> np.ndarray:
        """One clip -> frames uint8 [1 + 4 (F - 1), H, W, 3]."""
        return self._decoded(self._sample(self._noise(0), action, start=0))

    def restore(self, frames: np.ndarray, action: Controls | None, *, start: int) -> np.ndarray:
        """Frames uint8 [T, H, W, 3] of a clip, noised as at step `start` of sampling, as sampling goes on from there.

        How a clip can be compared with a recorded one: what is left of that in the noise says which one it is.
        """
        clean = jnp.asarray(self.encoders.autoencoder.encode(frames[None]), jnp.float32)
        a = v_prediction.at(self._alphas, self.sample.timesteps()[start : start + 1])
        return self._decoded(self._sample(v_prediction.add_noise(clean, self._noise(0), a), action, start=start))

    def _sample(self, initial: jax.Array, action: Controls | None, *, start: int) -> jax.Array:
        tokens = () if action is None else driving.filled(action.tokens, self.latents)
        told = self._encoded.conditions(self._text, tokens)
        latents = self._sampler(initial, told, lambda i: self._noise(1 + i), start=start)
        self._clips += 1
        return latents

    def _noise(self, number: int) -> jax.Array:
        """Standard normal [1, F, H, W, C]: of the start (0), or of a step (from 1)."""
        key = jax.random.fold_in(jax.random.key(self._seed), self._clips)
        return jax.random.normal(jax.random.fold_in(key, number), (1, *self.shape))

    def _decoded(self, latents: jax.Array) -> np.ndarray:
        return self.encoders.autoencoder.decode(np.asarray(latents))[0]
