"""Which keys a query sees, told by structure: no mask is ever a matrix of queries and keys.

Every mask gives each query one interval of keys, and neither end of it goes back from one query to the next. So all
that a backend has to know is where the interval stops, and how wide it is.
"""

import dataclasses
import functools
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np


class Mask(Protocol):
    """Query i sees the keys [max(stops[i] - width, 0), min(stops[i], keys)), or all before the stop for width None."""

    @property
    def width(self) -> int | None: ...

    def stops(self, queries: int) -> np.ndarray:
        """[queries] int32, never decreasing; may lie behind the last key."""

    def check(self, queries: int, keys: int) -> None:
        """A ValueError for lengths that the mask does not fit."""


@dataclasses.dataclass(frozen=True)
class ChunkCausal:
    """Queries of chunk i see the first `prefix` keys and the keys of chunks 0..i.

    Attributes:
      chunk: tokens per chunk; the number of queries must be a multiple of it.
      prefix: leading keys that every query sees (text).
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
    """A query sees itself and what comes before it."""

    @property
    def width(self) -> None:
        return None

    def stops(self, queries: int) -> np.ndarray:
        return np.arange(1, queries + 1, dtype=np.int32)

    def check(self, queries: int, keys: int) -> None:
        _check_self_attention(self, queries, keys)


@dataclasses.dataclass(frozen=True)
class Prefix:
    """The first `length` tokens see each other; every later one sees itself and what comes before it."""

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
    """A query sees itself, `left` tokens before it and `right` tokens behind it."""

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
            raise ValueError(f"a window of {self.left} tokens before and {self.right} behind: neither can be negative")


@functools.partial(jax.tree_util.register_dataclass, data_fields=["starts", "stops"], meta_fields=["within"])
@dataclasses.dataclass(frozen=True)
class Intervals:
    """Query i of sample b sees the keys [starts[b, i], stops[b, i]): intervals that the data decide, such as images.

    Attributes:
      starts, stops: [B, queries] int32; no interval is empty or ends behind the last key.
      within: a mask that hides no key which any of the intervals can show: what it hides is not computed.
    """

    starts: jax.Array
    stops: jax.Array
    within: Mask | None = None

    def visible(self, keys: int) -> jax.Array:
        """[B, queries, keys] bool."""
        places = jnp.arange(keys)
        return (places >= self.starts[..., None]) & (places < self.stops[..., None])


def _check_self_attention(mask: Mask, queries: int, keys: int) -> None:
    if queries != keys:
        raise ValueError(f"{mask} needs as many keys as queries, got {queries} queries and {keys} keys")
