"""Keys and values of earlier tokens, in arrays whose shapes never change.

Full layers keep all tokens of a sequence, sliding layers the last `window` of them in a ring.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jworld.models.gemma3.config import Gemma3Config, Kind
from jworld.parallel import axes


class KeyValues(NamedTuple):
    """Of the layers of one kind: [layers, B, S, M, K] each; token i lies in slot i mod S."""

    keys: jax.Array
    values: jax.Array


class Cache(NamedTuple):
    """Everything that a step of decoding needs of the steps before.

    Attributes:
      layers: kind of attention -> keys and values.
      valid: [B, S] bool, tokens that are no padding; S is the longest that the sequence may become.
      length: tokens so far, padding included; a scalar, int32.
    """

    layers: dict[Kind, KeyValues]
    valid: jax.Array
    length: jax.Array


def create(cfg: Gemma3Config, valid: jax.Array, *, capacity: int) -> Cache:
    """An empty cache for `capacity` tokens of which the first, `valid` [B, L], are about to come."""
    layers: dict[Kind, KeyValues] = {}
    for kind in sorted(set(cfg.kinds)):
        slots = capacity if kind == "full" else min(cfg.window, capacity)
        shape = (cfg.kinds.count(kind), valid.shape[0], slots, cfg.num_key_heads, cfg.head_dim)
        empty = axes.constrain_if_divisible(jnp.zeros(shape, cfg.dtype), None, "batch", None, None, None)
        layers[kind] = KeyValues(empty, empty)
    valid = jnp.pad(valid.astype(bool), [(0, 0), (0, capacity - valid.shape[1])])
    return Cache(layers, valid, jnp.zeros((), jnp.int32))


def write(store: KeyValues, layer: jax.Array, keys: jax.Array, values: jax.Array, start: jax.Array) -> KeyValues:
    """The tokens from number `start` on, keys and values [B, L, M, K], in their slots of a layer.

    More than one token may only come at once where `start` is 0, and of more than there are slots the last remain.
    """
    slots, length = store.keys.shape[2], keys.shape[1]

    def placed(store: jax.Array, new: jax.Array) -> jax.Array:
        if length > slots:
            new = jnp.roll(new[:, -slots:], length % slots, axis=1)
        first = start % slots if length == 1 else jnp.zeros_like(start)
        return jax.lax.dynamic_update_slice(store, new.astype(store.dtype)[None], (layer, 0, first, 0, 0))

    return KeyValues(placed(store.keys, keys), placed(store.values, values))


def visible(cache: Cache, slots: int) -> jax.Array:
    """[B, slots] bool: which slots the newest token sees, itself among them, before `length` counts it."""
    slot = jnp.arange(slots)
    token = cache.length - (cache.length - slot) % slots
    # `valid` says of generated tokens nothing yet.
    known = jnp.take(cache.valid, jnp.clip(token, 0), axis=1)
    return known & (token >= 0)


def grown(cache: Cache, layers: dict[Kind, KeyValues], count: int) -> Cache:
    """The cache after `count` more tokens."""
    return Cache(layers, cache.valid, cache.length + count)


def admit(cache: Cache) -> Cache:
    """The token that comes next is no padding."""
    here: Any = jnp.arange(cache.valid.shape[1]) == cache.length
    return cache._replace(valid=cache.valid | here)
