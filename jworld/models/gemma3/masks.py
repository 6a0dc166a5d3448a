"""Which tokens see which: causal, within a window, and images in both directions."""

from typing import Any

import jax
import jax.numpy as jnp

from jworld.models.gemma3.config import Gemma3Config, Kind
from jworld.models.layers.attention import Causal, Intervals, Mask, SlidingWindow

Masks = dict[Kind, Mask | Intervals]


def masks(cfg: Gemma3Config, length: int, images: jax.Array | None) -> Masks:
    """The mask of every kind of layer for a whole sequence.

    Args:
      cfg: the model.
      length: L.
      images: [B, L] bool, tokens whose neighbouring tokens of images see each other in both directions and beyond the
        window too; None: everything is causal.
    """
    if images is None:
        window: Any = Causal() if cfg.window >= length else SlidingWindow(left=cfg.window - 1)
        return {"full": Causal(), "sliding": window}
    first, last = image_spans(images)
    here = jnp.arange(length, dtype=jnp.int32)
    stops = jnp.where(images, last, here + 1)
    starts = jnp.broadcast_to(jnp.maximum(here + 1 - cfg.window, 0), images.shape)
    starts = jnp.where(images, jnp.minimum(starts, first), starts)
    return {"full": Intervals(jnp.zeros_like(starts), stops), "sliding": Intervals(starts, stops)}


def image_spans(images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, L] bool -> where the run of image tokens around each of them begins, and where it ends, [B, L] int32."""
    here = jnp.arange(images.shape[1], dtype=jnp.int32)
    edge = jnp.zeros_like(images[:, :1])
    begins = images & ~jnp.concatenate([edge, images[:, :-1]], axis=1)
    ends = images & ~jnp.concatenate([images[:, 1:], edge], axis=1)
    first = jax.lax.cummax(jnp.where(begins, here, 0), axis=1)
    last = jax.lax.cummin(jnp.where(ends, here + 1, images.shape[1]), axis=1, reverse=True)
    return first, last
