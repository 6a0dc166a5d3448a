"""Text from Gemma-3, token by token, with the keys and values of earlier tokens kept."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jworld.models.gemma3.cache import Cache
from jworld.models.gemma3.masks import Images
from jworld.models.gemma3.text import TextModel


class State(NamedTuple):
    """What decoding goes on from.

    Attributes:
      logits: [B, V] float32, of the next token.
      cache: of the tokens before it.
      position: [B] of the next token.
    """

    logits: jax.Array
    cache: Cache
    position: jax.Array


def prefill(model: TextModel, embeds: jax.Array, mask: jax.Array, images: Images | None, *, capacity: int) -> State:
    """Read prompts whose ends stand below each other (padding comes first).

    Args:
      model: the language model.
      embeds: [B, L, D].
      mask: [B, L] bool, False for padding.
      images: as of `TextModel`.
      capacity: tokens that prompt and answer may have together.
    """
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    states, cache = model.prefill(embeds, mask=mask, positions=positions, images=images, capacity=capacity)
    return State(model.logits(states[:, -1]), cache, positions[:, -1] + 1)


def step(model: TextModel, tokens: jax.Array, state: State) -> State:
    """The state after the tokens [B]."""
    embeds = model.embed(tokens[:, None])
    states, cache = model.decode(embeds, state.cache, positions=state.position[:, None])
    return State(model.logits(states[:, 0]), cache, state.position + 1)


def greedy(model: TextModel, state: State, *, steps: int, ends: tuple[int, ...] = ()) -> jax.Array:
    """The likeliest tokens one after the other, [B, steps] int32.

    A row that has ended, with one of the tokens `ends`, goes on with that token; when all have, nothing is computed.
    """
    rows = state.logits.shape[0]

    def going_on(carry: tuple[State, jax.Array, jax.Array, jax.Array]) -> jax.Array:
        return (carry[3] < steps) & ~jnp.all(carry[2])

    def body(carry: tuple[State, jax.Array, jax.Array, jax.Array]) -> tuple[State, jax.Array, jax.Array, jax.Array]:
        state, tokens, ended, number = carry
        chosen = jnp.argmax(state.logits, axis=-1).astype(jnp.int32)
        chosen = jnp.where(ended, tokens[:, jnp.maximum(number - 1, 0)], chosen)
        tokens = tokens.at[:, number].set(chosen)
        ended = ended | jnp.isin(chosen, jnp.asarray(ends, jnp.int32))
        return step(model, chosen, state), tokens, ended, number + 1

    start = (state, jnp.full((rows, steps), ends[0] if ends else 0, jnp.int32), jnp.zeros(rows, bool), jnp.int32(0))
    return jax.lax.while_loop(going_on, body, start)[1]


def align_right(embeds: jax.Array, *masks: jax.Array) -> tuple[jax.Array, ...]:
    """Rows whose padding comes last, as the first of `masks` [B, L] says -> the same with the padding first."""
    length = embeds.shape[1]
    padding = length - jnp.sum(masks[0], axis=1, keepdims=True)
    place = (jnp.arange(length) - padding) % length
    return (
        jnp.take_along_axis(embeds, place[..., None], axis=1),
        *(jnp.take_along_axis(mask, place, axis=1) for mask in masks),
    )
