"""KV cache in arrays of constant shape.

Full layers store all tokens of a sequence, sliding layers the last `window` of them in a ring buffer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jworld.models.gemma3.config import Gemma3Config, Kind
from jworld.parallel import axes


class KeyValues(NamedTuple):
    """Keys and values of the layers of one kind: [layers, B, S, M, K] each; token i is in slot i mod S."""

    keys: jax.Array
    values: jax.Array


class Cache(NamedTuple):
    """KV cache of the earlier tokens, with their mask.

    Attributes:
      layers: kind of attention -> keys and values.
      valid: [B, S] bool, False for padding; S is the maximum length of the sequence.
      length: number of tokens so far, padding included; a scalar, int32.
    """

    layers: dict[Kind, KeyValues]
    valid: jax.Array
    length: jax.Array


def create(cfg: Gemma3Config, valid: jax.Array, *, capacity: int) -> Cache:
    """Create an empty cache for `capacity` tokens; the first ones, with the mask `valid` [B, L], come next."""
    layers: dict[Kind, KeyValues] = {}
    for kind in sorted(set(cfg.kinds)):
        slots = capacity if kind == "full" else min(cfg.window, capacity)
        shape = (cfg.kinds.count(kind), valid.shape[0], slots, cfg.num_key_heads, cfg.head_dim)
        empty = axes.constrain_if_divisible(jnp.zeros(shape, cfg.dtype), None, "batch", None, None, None)
        layers[kind] = KeyValues(empty, empty)
    valid = jnp.pad(valid.astype(bool), [(0, 0), (0, capacity - valid.shape[1])])
    return Cache(layers, valid, jnp.zeros((), jnp.int32))


def write(
    store: KeyValues, layer: jax.Array, keys: jax.Array, values: jax.Array, start: jax.Array, written: jax.Array
) -> KeyValues:
    """Write the tokens from index `start` on, keys and values [B, L, M, K], to their slots of a layer.

    Several tokens at once are only allowed if `start` is 0. If they exceed the slots, the last ones remain. Nothing
    changes unless `written`, a bool scalar, is True.
    """
    slots, length = store.keys.shape[2], keys.shape[1]

    def placed(store: jax.Array, new: jax.Array) -> jax.Array:
        if length > slots:
            new = jnp.roll(new[:, -slots:], length % slots, axis=1)
        new = new.astype(store.dtype)[None]
        first = start % slots if length == 1 else jnp.zeros_like(start)
        at = (layer, 0, first, 0, 0)
        # The same value instead of a conditional, so that the store is updated in place.
        kept = jax.lax.dynamic_slice(store, at, new.shape)
        return jax.lax.dynamic_update_slice(store, jnp.where(written, new, kept), at)

    return KeyValues(placed(store.keys, keys), placed(store.values, values))


def visible(cache: Cache, slots: int) -> jax.Array:
    """Return [B, slots] bool: the slots that the newest token, not yet in `length`, attends to, itself included."""
    slot = jnp.arange(slots)
    token = cache.length - (cache.length - slot) % slots
    valid = jnp.take(cache.valid, jnp.clip(token, 0), axis=1)
    return valid & (token >= 0)


def grown(cache: Cache, layers: dict[Kind, KeyValues], count: int) -> Cache:
    """Return the cache after `count` more tokens."""
    return Cache(layers, cache.valid, cache.length + count)


def admit(cache: Cache) -> Cache:
    """Mark the next token as valid."""
    here: Any = jnp.arange(cache.valid.shape[1]) == cache.length
    return cache._replace(valid=cache.valid | here)
