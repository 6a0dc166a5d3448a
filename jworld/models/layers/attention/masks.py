"""Structured attention masks: no mask is ever a dense matrix of queries and keys.

Every mask gives each query one interval of keys, and neither end of it decreases from one query to the next. So a
backend needs only the stop of each interval and its width.
"""

import dataclasses
import functools
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np


class Mask(Protocol):
    """A mask: query i attends to keys [max(stops[i] - width, 0), min(stops[i], keys)), from key 0 if width is None."""

    @property
    def width(self) -> int | None: ...

    def stops(self, queries: int) -> np.ndarray:
        """Return [queries] int32, never decreasing; a stop may exceed the number of keys."""

    def check(self, queries: int, keys: int) -> None:
        """Raise a ValueError for lengths that the mask does not fit."""


@dataclasses.dataclass(frozen=True)
class ChunkCausal:
    """A block-causal mask: queries of chunk i attend to the first `prefix` keys and the keys of chunks 0..i.

    Attributes:
      chunk: tokens per chunk; the number of queries must be a multiple of it.
      prefix: leading keys that every query attends to (text).
    """

    chunk: int
    prefix: int = 0

    @property
    def width(self) -> None:
        return None

    def stops(self, queries: int) -> np.ndarray:
        return (self.prefix + (np.arange(queries) // self.chunk + 1) * self.chunk).astype(np.int32)

    def check(self, queries: int, keys: int) -> None:
        if queries % self.chunk or keys != self.prefix + queries:
            raise ValueError(
                f"{queries} queries in chunks of {self.chunk} need {self.prefix} + {queries} keys, got {keys} keys"
            )


@dataclasses.dataclass(frozen=True)
class Causal:
    """A causal mask: a query attends to itself and to all earlier tokens."""

    @property
    def width(self) -> None:
        return None

    def stops(self, queries: int) -> np.ndarray:
        return np.arange(1, queries + 1, dtype=np.int32)

    def check(self, queries: int, keys: int) -> None:
        _check_self_attention(self, queries, keys)


@dataclasses.dataclass(frozen=True)
class Prefix:
    """A prefix mask: the first `length` tokens attend to each other, later ones causally."""

    length: int

    @property
    def width(self) -> None:
        return None

    def stops(self, queries: int) -> np.ndarray:
        return np.maximum(np.arange(1, queries + 1), self.length).astype(np.int32)

    def check(self, queries: int, keys: int) -> None:
        _check_self_attention(self, queries, keys)
        if not 0 < self.length <= queries:
            raise ValueError(f"a prefix of {self.length} tokens does not fit {queries} queries")


@dataclasses.dataclass(frozen=True)
class SlidingWindow:
    """A sliding window: a query attends to itself, `left` tokens before it and `right` tokens after it."""

    left: int
    right: int = 0

    @property
    def width(self) -> int:
        return self.left + self.right + 1

    def stops(self, queries: int) -> np.ndarray:
        return np.arange(self.right + 1, queries + self.right + 1, dtype=np.int32)

    def check(self, queries: int, keys: int) -> None:
        _check_self_attention(self, queries, keys)
        if self.left < 0 or self.right < 0:
            raise ValueError(f"a window of {self.left} tokens before and {self.right} after: neither can be negative")


@functools.partial(jax.tree_util.register_dataclass, data_fields=["starts", "stops"], meta_fields=["within"])
@dataclasses.dataclass(frozen=True)
class Intervals:
    """Intervals that depend on the data, such as images: query i of sample b attends to [starts[b, i], stops[b, i]).

    Attributes:
      starts, stops: [B, queries] int32; no interval is empty or stops after the last key.
      within: a mask that contains every possible interval; what lies outside of it is not computed.
    """

    starts: jax.Array
    stops: jax.Array
    within: Mask | None = None

    def visible(self, keys: int) -> jax.Array:
        """Return the dense mask, [B, queries, keys] bool."""
        places = jnp.arange(keys)
        return (places >= self.starts[..., None]) & (places < self.stops[..., None])


def _check_self_attention(mask: Mask, queries: int, keys: int) -> None:
    if queries != keys:
        raise ValueError(f"{mask} needs as many keys as queries, got {queries} queries and {keys} keys")
