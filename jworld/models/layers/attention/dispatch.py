"""The attention function: chooses a backend and the layout of its arrays on a mesh."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jworld.models.layers.attention import backends as choice
from jworld.models.layers.attention import cudnn, splash, xla
from jworld.models.layers.attention.backends import Implementation
from jworld.models.layers.attention.masks import Intervals, Mask
from jworld.models.layers.attention.names import OUTPUT_NAME
from jworld.parallel import sequence


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: Mask | Intervals | None = None,
    key_mask: jax.Array | None = None,
    implementation: Implementation = None,
) -> jax.Array:
    """Softmax attention, scale 1/sqrt(K); logits and softmax in float32.

    On a mesh, tokens arrive split over the axis of `sequence` and leave so; `jworld.parallel.sequence` tells what
    happens in between.

    Args:
      q: [B, Lq, N, K] queries.
      k: [B, Lk, M, K] keys; N is a multiple of M, and query head i sees key head i // (N / M).
      v: [B, Lk, M, K] values.
      mask: which keys a query may see; None for all. What a mask hides is not computed, but for corners of blocks.
      key_mask: [B, Lk] bool, False for padding; at least one key per query must be True.
      implementation: "xla", "cudnn", "splash", or "auto" (also None): the one for the devices of the mesh.

    Returns:
      [B, Lq, N, K] in the dtype of `v`.

    Raises:
      ValueError: the mask does not fit the lengths of q and k, or the heads of keys do not divide those of queries.
    """
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} heads of queries are no multiple of {k.shape[2]} heads of keys")
    of_sample: dict[str, Any] = {"key_mask": key_mask}
    if isinstance(mask, Intervals):
        if q.shape[2] % sequence.devices():
            # Neither rings nor blocks of queries that are split over devices already.
            of_sample["mask"] = dataclasses.replace(mask, within=None)
            return sequence.queries_split(xla.attention, q, k, v, of_sample)
        of_sample["mask"] = mask
    elif mask is not None:
        mask.check(q.shape[1], k.shape[1])
    if k.shape[2] % sequence.devices():
        # Heads are split over the devices: each needs its own.
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    if q.shape[2] > 1 and q.shape[2] % sequence.devices():
        assert not isinstance(mask, Intervals)
        choice.announce_rings(q.shape[2], sequence.devices())
        stops, width = (None, None) if mask is None else (mask.stops(q.shape[1]), mask.width)
        return sequence.rings(q, k, v, key_mask, stops=stops, width=width, name=OUTPUT_NAME)
    platform, blocks = choice.target()
    chosen = choice.choose(
        implementation,
        platform=platform,
        mask=mask,
        key_mask=key_mask is not None,
        lengths=(q.shape[1], k.shape[1]),
        heads=q.shape[2],
        head_dim=q.shape[-1],
        dtype=v.dtype,
    )
    backends: dict[str, Callable[..., jax.Array]] = {
        "xla": xla.attention,
        "cudnn": cudnn.attention,
        "splash": functools.partial(splash.attention, blocks=blocks),
    }
    # Intervals come once more with the sample, and those of a device's samples are what counts.
    local = functools.partial(backends[chosen.backend], mask=mask)
    layout = sequence.queries_split if q.shape[2] == 1 and chosen.backend == "xla" else sequence.heads_split
    return layout(local, q, k, v, of_sample)
