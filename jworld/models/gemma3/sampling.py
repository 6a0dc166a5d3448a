"""Choice of the next token from its logits: the most likely one, or a random one of the likely ones."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sampler(NamedTuple):
    """Settings with which each row of a batch draws its tokens.

    Attributes:
      temperature: [B] float32 by which logits are divided; 0 takes the most likely token.
      top_k: [B] int32, number of most likely tokens that can be drawn; 0 for all.
      top_p: [B] float32 above 0; only the most likely tokens whose probabilities reach this sum can be drawn.
      keys: [B] random keys.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    keys: jax.Array


def choose(logits: jax.Array, sampler: Sampler | None, number: jax.Array | int) -> jax.Array:
    """Choose the token with index `number` of each answer: [B, V] float32 -> [B] int32.

    The token of a row depends on its key and on `number` only, not on the rest of the batch. Without a sampler it is
    the most likely one. `top_p` is applied to the probabilities of the tokens that `top_k` leaves.
    """
    best = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if sampler is None:
        return best
    vocabulary = logits.shape[-1]
    scaled = logits / jnp.where(sampler.temperature > 0, sampler.temperature, 1.0)[:, None]
    ordered, tokens = jax.lax.top_k(scaled, vocabulary)
    limit = jnp.where(sampler.top_k > 0, sampler.top_k, vocabulary)[:, None]
    allowed = jnp.where(jnp.arange(vocabulary) < limit, ordered, -jnp.inf)
    likely = jax.nn.softmax(allowed, axis=-1)
    # The first token is always allowed: the sum before it is 0.
    before = jnp.cumsum(likely, axis=-1) - likely
    allowed = jnp.where(before < sampler.top_p[:, None], allowed, -jnp.inf)
    keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(sampler.keys, number)
    drawn = jax.vmap(jax.random.categorical)(keys, allowed)
    chosen = jnp.take_along_axis(tokens, drawn[:, None], axis=-1)[:, 0]
    return jnp.where(sampler.temperature > 0, chosen, best)
