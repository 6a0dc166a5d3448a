"""The attention function that every network calls: it chooses a backend and the layout of its arrays on a mesh."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jworld.models.layers.attention import backends
from jworld.models.layers.attention.base import Request
from jworld.models.layers.attention.masks import Intervals, Mask
from jworld.models.layers.attention.names import OUTPUT_NAME
from jworld.parallel import sequence

#: Value of `config.model.attention`: the name of a backend, "auto" or None; see `backends.check_implementation`.
Implementation = str | None


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: Mask | Intervals | None = None,
    key_mask: jax.Array | None = None,
    implementation: Implementation = None,
) -> jax.Array:
    """Compute softmax attention, scale 1/sqrt(K), with logits and softmax in float32.

    On a mesh, tokens are split over the axis of `sequence` on input and output; `jworld.parallel.sequence` describes
    the layouts in between.

    Args:
      q: [B, Lq, N, K] queries.
      k: [B, Lk, M, K] keys; N is a multiple of M, and query head i attends to key head i // (N / M).
      v: [B, Lk, M, K] values.
      mask: keys that each query may attend to; None for all. Masked blocks are not computed, except their corners.
      key_mask: [B, Lk] bool, False for padding; at least one key per query must be True.
      implementation: name of a backend, or "auto" (also None) for the best one on the devices of the mesh.

    Returns:
      [B, Lq, N, K] in the dtype of `v`.

    Raises:
      ValueError: the mask does not fit the lengths of q and k, the key heads do not divide the query heads, or no
        backend has this name.
    """
    if q.shape[2] % k.shape[2]:
        raise ValueError(f"{q.shape[2]} query heads are not a multiple of {k.shape[2]} key heads")
    per_sample: dict[str, Any] = {"key_mask": key_mask}
    if isinstance(mask, Intervals):
        if q.shape[2] % sequence.devices():
            # Neither rings nor blocks of queries support intervals if queries are already split over devices.
            per_sample["mask"] = dataclasses.replace(mask, within=None)
            return sequence.queries_split(backends.REFERENCE.attention, q, k, v, per_sample)
        per_sample["mask"] = mask
    elif mask is not None:
        mask.check(q.shape[1], k.shape[1])
    if k.shape[2] % sequence.devices():
        # Heads are split over the devices, so every query head needs its own key head.
        k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    if q.shape[2] > 1 and q.shape[2] % sequence.devices():
        assert not isinstance(mask, Intervals)
        backends.announce_rings(q.shape[2], sequence.devices())
        stops, width = (None, None) if mask is None else (mask.stops(q.shape[1]), mask.width)
        return sequence.rings(q, k, v, key_mask, stops=stops, width=width, name=OUTPUT_NAME)
    request = Request(
        mask=mask,
        key_mask=key_mask is not None,
        lengths=(q.shape[1], k.shape[1]),
        heads=q.shape[2],
        head_dim=q.shape[-1],
        dtype=v.dtype,
    )
    backend = backends.choose(implementation, request).backend
    # Intervals are passed a second time per sample; each device uses those of its own samples.
    local = functools.partial(backend.attention, mask=mask)
    layout = sequence.queries_split if q.shape[2] == 1 and backend.splits_queries else sequence.heads_split
    return layout(local, q, k, v, per_sample)
