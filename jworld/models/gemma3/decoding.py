"""Text generation with Gemma-3: prefill, then decoding token by token with a KV cache."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jworld.models.gemma3 import sampling
from jworld.models.gemma3.cache import Cache
from jworld.models.gemma3.masks import Images
from jworld.models.gemma3.text import TextModel


class State(NamedTuple):
    """State of decoding.

    Attributes:
      logits: [B, V] float32, of the next token.
      cache: KV cache of the earlier tokens.
      position: [B] of the next token.
    """

    logits: jax.Array
    cache: Cache
    position: jax.Array


def prefill(model: TextModel, embeds: jax.Array, mask: jax.Array, images: Images | None, *, capacity: int) -> State:
    """Prefill the KV cache with left-padded prompts.

    Args:
      model: the language model.
      embeds: [B, L, D].
      mask: [B, L] bool, False for padding.
      images: as in `TextModel`.
      capacity: maximum length of prompt and answer together, in tokens.
    """
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    states, cache = model.prefill(embeds, mask=mask, positions=positions, images=images, capacity=capacity)
    return State(model.logits(states[:, -1]), cache, positions[:, -1] + 1)


def step(model: TextModel, tokens: jax.Array, state: State) -> State:
    """Decode one step: return the state after the tokens [B]."""
    embeds = model.embed(tokens[:, None])
    states, cache = model.decode(embeds, state.cache, positions=state.position[:, None])
    return State(model.logits(states[:, 0]), cache, state.position + 1)


def generate(
    model: TextModel, state: State, *, steps: int, ends: tuple[int, ...] = (), sampler: sampling.Sampler | None = None
) -> jax.Array:
    """Decode a token in each step, the most likely one without a sampler: [B, steps] int32.

    A row that has ended, with one of the tokens `ends`, repeats that token. When all rows have ended, decoding stops.
    """
    rows = state.logits.shape[0]

    def unfinished(carry: tuple[State, jax.Array, jax.Array, jax.Array]) -> jax.Array:
        return (carry[3] < steps) & ~jnp.all(carry[2])

    def body(carry: tuple[State, jax.Array, jax.Array, jax.Array]) -> tuple[State, jax.Array, jax.Array, jax.Array]:
        state, tokens, ended, number = carry
        chosen = sampling.choose(state.logits, sampler, number)
        chosen = jnp.where(ended, tokens[:, jnp.maximum(number - 1, 0)], chosen)
        tokens = tokens.at[:, number].set(chosen)
        ended = ended | jnp.isin(chosen, jnp.asarray(ends, jnp.int32))
        return step(model, chosen, state), tokens, ended, number + 1

    start = (state, jnp.full((rows, steps), ends[0] if ends else 0, jnp.int32), jnp.zeros(rows, bool), jnp.int32(0))
    return jax.lax.while_loop(unfinished, body, start)[1]


def align_right(embeds: jax.Array, *masks: jax.Array) -> tuple[jax.Array, ...]:
    """Convert right-padded rows to left-padded ones; the first of `masks` [B, L] marks the padding.

    Columns that are masked at the start stay before the tokens.
    """
    length = embeds.shape[1]
    padding = jnp.argmax(masks[0][:, ::-1], axis=1)[:, None]
    source = (jnp.arange(length) - padding) % length
    return (
        jnp.take_along_axis(embeds, source[..., None], axis=1),
        *(jnp.take_along_axis(mask, source, axis=1) for mask in masks),
    )
