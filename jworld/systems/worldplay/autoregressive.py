"""Rollout of the autoregressive model, with a KV cache of text and context frames for all steps of a chunk.

Source: HY-WorldPlay `hyvideo/pipelines/worldplay_video_pipeline.py`, `_ar_rollout_inner`.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from jworld.diffusion import step_reports
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import Cache, HunyuanTransformer
from jworld.parallel.axes import constrain_if_divisible
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


@functools.partial(jax.jit, static_argnames="context_tokens")
def start_cache(model: HunyuanTransformer, text: TextInputs, *, context_tokens: int) -> Cache:
    """Build the KV cache for a rollout: the text entries, followed by masked space for context frames."""
    own = model.text_cache(text, jnp.zeros(text.text.shape[0]))
    # Both branches of the image stream use the text entries.
    branches = 2 if model.cfg.actions else 1

    def extended(x: jax.Array) -> jax.Array:
        x = jnp.tile(x, (1, 1, 1, branches, 1))
        return _split_heads(jnp.pad(x, [(0, 0), (0, 0), (0, context_tokens), (0, 0), (0, 0)]))

    return Cache(jax.tree.map(extended, own.layers), jnp.pad(own.mask, [(0, 0), (0, context_tokens)]))


@functools.partial(jax.jit, static_argnames=("cfg", "context_tokens"), donate_argnames="cache")
def cache_context(
    model: HunyuanTransformer,
    cache: Cache,
    image: np.ndarray,
    past: np.ndarray,
    context: Frames,
    *,
    cfg: SampleConfig,
    context_tokens: int,
) -> Cache:
    """Replace the context entries of `cache` by those of the frames `context` with the latents `past`.

    This runs once per chunk and donates the old cache.
    """
    text_tokens = cache.mask.shape[1] - context_tokens
    text = Cache(jax.tree.map(lambda x: x[:, :, :text_tokens], cache.layers), cache.mask[:, :text_tokens])
    frames = frame_inputs(context, past, image, cfg.context_time, rows=cache.mask.shape[0])
    _, own = model.with_cache(frames, text)

    def replaced(x: jax.Array, part: jax.Array) -> jax.Array:
        return _split_heads(x.at[:, :, text_tokens:].set(part))

    layers = jax.tree.map(replaced, cache.layers, own.layers)
    return Cache(layers, cache.mask.at[:, text_tokens:].set(own.mask))


@functools.partial(jax.jit, static_argnames="cfg")
def denoise_chunk(
    model: HunyuanTransformer,
    cache: Cache,
    noisy: jax.Array,
    steps: np.ndarray,
    image: np.ndarray,
    past: np.ndarray,
    context: Frames,
    chunk: Frames,
    *,
    cfg: SampleConfig,
) -> jax.Array:
    """Run denoising steps, see `denoise`, on latents [f, H, W, C] of the frames `chunk`; all share the KV cache.

    References are found among the frames `context` with the latents `past`, see `HunyuanConfig.references`.
    """
    rows, known = cache.mask.shape[0], known_frames(model, past, context)

    def velocity(x: jax.Array, time: jax.Array, step_size: jax.Array) -> jax.Array:
        inputs = frame_inputs(chunk, x, image, time, rows, known=known, step_sizes=step_size)
        return model.with_cache(inputs, cache)[0]

    return denoise(velocity, noisy, steps, cfg)


def _split_heads(x: jax.Array) -> jax.Array:
    """Shard cache entries [layers, B, L, heads, K] over the mesh as attention needs them."""
    return constrain_if_divisible(x, None, "batch", None, "attention_heads", None)


class AutoregressiveSession(LatentSession):
    """A `LatentSession` that denoises one training chunk per step."""

    training_chunks = 1

    def programs(self, text: TextInputs, image: tuple[int, ...]) -> Iterator[Program]:
        """See `LatentSession`."""
        tokens = {"context_tokens": self._tokens(image)}
        first = Program("text cache", start_cache, (self.model, text), tokens, runs=0)
        yield first
        # The programs of a chunk receive the cache in the layout of this one.
        cache = first.results()
        noise, steps, given, past, context, chunk = self.described(image)
        yield self.denoising(denoise_chunk, cache, noise, steps, given, past, context, chunk, cache=cache)
        context_arguments = self.model, cache, given, past, context
        yield Program("context pass", cache_context, context_arguments, {"cfg": self.sample, **tokens}, cache=cache)

    def _tokens(self, image: tuple[int, ...]) -> int:
        """Return the tokens of all context frames, for an image of this shape."""
        _, height, width = self.model.cfg.patch_size
        return self.context_frames * (image[1] * image[2] // (height * width))

    def _begin(self, text: TextInputs) -> None:
        self._context_tokens = self._tokens(self._image.shape)
        # Free the cache of an earlier rollout first.
        self._cache: Cache | None = None
        self._cache = start_cache(self.model, text, context_tokens=self._context_tokens)

    def _denoise(self, noise: jax.Array, past: np.ndarray, context: Frames, chunk: Frames) -> jax.Array:
        assert self._cache is not None
        if context.valid.any():
            self._cache = cache_context(
                self.model,
                self._cache,
                self._image,
                past,
                context,
                cfg=self.sample,
                context_tokens=self._context_tokens,
            )

        def call(noisy: jax.Array, steps: np.ndarray) -> jax.Array:
            inputs = (noisy, steps, self._image, past, context, chunk)
            latents: jax.Array = denoise_chunk(self.model, self._cache, *inputs, cfg=self.sample)
            return latents

        return step_reports.run(call, noise, all_steps(self.sample), self.listener)
