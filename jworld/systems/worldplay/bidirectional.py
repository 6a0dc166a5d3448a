"""Rollout of the bidirectional model: every step runs the model on text, context frames and chunk together.

Source: HY-WorldPlay `hyvideo/pipelines/worldplay_video_pipeline.py`, `bi_rollout`.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jworld.diffusion import step_reports
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import HunyuanTransformer
from jworld.parallel.programs import Program
from jworld.systems.worldplay.latents import (
    Frames,
    LatentSession,
    SampleConfig,
    all_steps,
    denoise,
    frame_inputs,
    known_frames,
)


@functools.partial(jax.jit, static_argnames="cfg")
def denoise_chunk(
    model: HunyuanTransformer,
    text: TextInputs,
    noisy: jax.Array,
    steps: np.ndarray,
    image: np.ndarray,
    past: np.ndarray,
    context: Frames,
    chunk: Frames,
    *,
    cfg: SampleConfig,
) -> jax.Array:
    """Run denoising steps, see `denoise`, on latents [f, H, W, C] of the frames `chunk`.

    They are given the latents `past` of the frames `context`, among which references are found, see
    `HunyuanConfig.references`.
    """
    rows, before, known = text.text.shape[0], len(past), known_frames(model, past, context)
    frames = Frames(*(jnp.concatenate(pair) for pair in zip(context, chunk, strict=True)))

    def velocity(x: jax.Array, time: jax.Array, step_size: jax.Array) -> jax.Array:
        times, sizes = (
            jnp.concatenate([jnp.full(before, given), jnp.full(len(x), own)])
            for given, own in ((cfg.context_time, time), (0.0, step_size))
        )
        both = jnp.concatenate([past, x])
        inputs = frame_inputs(frames, both, image, times, rows, known=known, given=before, step_sizes=sizes)
        # The text is conditioned on the time too, so its keys and values cannot be cached.
        return model(inputs, text, jnp.full(rows, time), chunk_frames=None)[:, before:]

    return denoise(velocity, noisy, steps, cfg)


class BidirectionalSession(LatentSession):
    """A `LatentSession` that denoises four training chunks per step."""

    training_chunks = 4

    def programs(self, text: TextInputs, image: tuple[int, ...]) -> Iterator[Program]:
        """See `LatentSession`."""
        yield self.denoising(denoise_chunk, text, *self.described(image))

    def _begin(self, text: TextInputs) -> None:
        self._text = text

    def _denoise(self, noise: jax.Array, past: np.ndarray, context: Frames, chunk: Frames) -> jax.Array:
        def call(noisy: jax.Array, steps: np.ndarray) -> jax.Array:
            inputs = (noisy, steps, self._image, past, context, chunk)
            latents: jax.Array = denoise_chunk(self.model, self._text, *inputs, cfg=self.sample)
            return latents

        return step_reports.run(call, noise, all_steps(self.sample), self.listener)
