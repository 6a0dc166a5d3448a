"""Attention masks: causal, within a window, and bidirectional within images."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jworld.models.gemma3.config import Gemma3Config, Kind
from jworld.models.layers.attention import Causal, Intervals, Mask, SlidingWindow

Masks = dict[Kind, Mask | Intervals]


@functools.partial(jax.tree_util.register_dataclass, data_fields=["tokens"], meta_fields=["longest"])
@dataclasses.dataclass(frozen=True)
class Images:
    """Image tokens: adjacent ones attend to each other in both directions, also beyond the window.

    Attributes:
      tokens: [B, L] bool.
      longest: upper bound of the number of adjacent image tokens.
    """

    tokens: jax.Array
    longest: int


def masks(cfg: Gemma3Config, length: int, images: Images | None) -> Masks:
    """Return the mask of every kind of layer for a whole sequence.

    Args:
      cfg: the model.
      length: L.
      images: of the prompt; None: everything is causal.
    """
    if images is None:
        window: Any = Causal() if cfg.window >= length else SlidingWindow(left=cfg.window - 1)
        return {"full": Causal(), "sliding": window}
    first, last = image_spans(images.tokens)
    here = jnp.arange(length, dtype=jnp.int32)
    stops = jnp.where(images.tokens, last, here + 1)
    starts = jnp.broadcast_to(jnp.maximum(here + 1 - cfg.window, 0), stops.shape)
    starts = jnp.where(images.tokens, jnp.minimum(starts, first), starts)
    ahead = min(images.longest, length) - 1
    return {
        "full": Intervals(jnp.zeros_like(starts), stops, SlidingWindow(left=length - 1, right=ahead)),
        "sliding": Intervals(starts, stops, SlidingWindow(left=max(cfg.window - 1, ahead), right=ahead)),
    }


def image_spans(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return start and end of the run of image tokens around each of them: [B, L] bool -> twice [B, L] int32."""
    here = jnp.arange(images.shape[1], dtype=jnp.int32)
    edge = jnp.zeros_like(images[:, :1])
    begins = images & ~jnp.concatenate([edge, images[:, :-1]], axis=1)
    ends = images & ~jnp.concatenate([images[:, 1:], edge], axis=1)
    first = jax.lax.cummax(jnp.where(begins, here, 0), axis=1)
    last = jax.lax.cummin(jnp.where(ends, here + 1, images.shape[1]), axis=1, reverse=True)
    return first, last
