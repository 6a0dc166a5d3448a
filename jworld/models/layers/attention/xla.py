"""Attention as plain XLA operations: the reference, and the fallback where no kernel runs."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from jworld.models.layers.attention.base import Backend
from jworld.models.layers.attention.masks import Intervals, Mask
from jworld.models.layers.attention.names import OUTPUT_NAME

#: Rows of a block where neighboring rows have different stops, and the largest number of blocks. The masked corners of
#: a block are computed and discarded; every block adds code to the program.
BLOCK_ROWS, MAX_BLOCKS = 256, 64
#: Logits (float32) that one call may hold. Longer sequences are processed in blocks of queries, whose logits the
#: backward pass recomputes instead of storing.
MAX_LOGITS = 2**26


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: Mask | Intervals | None,
    key_mask: jax.Array | None,
    max_logits: int = MAX_LOGITS,
) -> jax.Array:
    """Compute attention: [B, Lq, N, K], [B, Lk, M, K] twice, [B, Lk] key mask -> [B, Lq, N, K] in the dtype of v."""
    per_pair = q.shape[0] * q.shape[2]
    blocks = _blocks(mask.within if isinstance(mask, Intervals) else mask, q.shape[1], k.shape[1])
    total = sum((block.stop - block.start) * (keys.stop - keys.start) for block, keys in blocks)
    outputs = []
    for block, keys in blocks:
        seen = None if key_mask is None else key_mask[:, keys]
        band = _band(mask, q.shape[1], block, keys)
        arguments = (q[:, block], k[:, keys], v[:, keys], seen)
        if per_pair * total <= max_logits:
            outputs.append(_plain(*arguments, band))
        else:
            outputs.append(_in_parts(*arguments, band, rows=max(max_logits // (per_pair * arguments[1].shape[1]), 1)))
    out = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)
    named: jax.Array = checkpoint_name(out, OUTPUT_NAME)
    return named


def _blocks(mask: Mask | None, queries: int, keys: int) -> list[tuple[slice, slice]]:
    """Return runs of queries, each with the keys that any of its queries attends to."""
    if mask is None:
        return [(slice(0, queries), slice(0, keys))]
    stops = np.minimum(mask.stops(queries), keys)
    # Rows that share a stop (chunks) form a block without a masked corner.
    edges = np.flatnonzero(np.diff(stops)) + 1
    are_runs = 2 * len(edges) < min(queries, 2 * MAX_BLOCKS)
    rows = max(BLOCK_ROWS, math.ceil(queries / MAX_BLOCKS))
    starts = [0, *edges.tolist()] if are_runs else list(range(0, queries, rows))
    spans = zip(starts, [*starts[1:], queries], strict=True)
    firsts = np.zeros_like(stops) if mask.width is None else np.maximum(mask.stops(queries) - mask.width, 0)
    return [(slice(start, stop), slice(int(firsts[start]), int(stops[stop - 1]))) for start, stop in spans]


def _band(mask: Mask | Intervals | None, queries: int, block: slice, keys: slice) -> np.ndarray | Intervals | None:
    """Return the mask of a block: [rows, keys] bool, None if every row attends to every key, or its intervals."""
    if mask is None:
        return None
    if isinstance(mask, Intervals):
        return Intervals(mask.starts[:, block] - keys.start, mask.stops[:, block] - keys.start)
    stops, key = mask.stops(queries)[block, None], np.arange(keys.start, keys.stop)
    band = key < stops
    if mask.width is not None:
        band &= key >= stops - mask.width
    return None if band.all() else band


def _plain(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    key_mask: jax.Array | None,
    band: jax.Array | np.ndarray | Intervals | None,
) -> jax.Array:
    masks = [] if key_mask is None else [key_mask[:, None, None, :]]
    if isinstance(band, Intervals):
        masks.append(band.visible(k.shape[1])[:, None])
    elif band is not None:
        masks.append(jnp.asarray(band)[None, None])
    visible = functools.reduce(jnp.logical_and, masks) if masks else None
    return jax.nn.dot_product_attention(q, k, v, mask=visible, implementation="xla")


def _in_parts(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    key_mask: jax.Array | None,
    band: np.ndarray | Intervals | None,
    *,
    rows: int,
) -> jax.Array:
    """Compute `_plain` for at most `rows` queries at a time; the backward pass holds the logits of one part only."""
    B, L, N, K = q.shape
    parts = math.ceil(L / rows)
    rows = math.ceil(L / parts)
    padding = parts * rows - L
    q = jnp.pad(q, [(0, 0), (0, padding), (0, 0), (0, 0)]).reshape(B, parts, rows, N, K)
    # A padded row attends to the keys of the last row, so no row is without keys.
    bands: jax.Array | Intervals | None = None
    if isinstance(band, Intervals):
        padded = (jnp.pad(x, [(0, 0), (0, padding)], mode="edge") for x in (band.starts, band.stops))
        starts, stops = (jnp.moveaxis(x.reshape(-1, parts, rows), 1, 0) for x in padded)
        bands = Intervals(starts, stops)
    elif band is not None:
        bands = jnp.asarray(np.pad(band, [(0, padding), (0, 0)], mode="edge")).reshape(parts, rows, -1)

    @jax.checkpoint
    def step(carry: None, part: tuple[jax.Array, jax.Array | Intervals | None]) -> tuple[None, jax.Array]:
        return carry, _plain(part[0], k, v, key_mask, part[1])

    _, out = jax.lax.scan(step, None, (jnp.moveaxis(q, 1, 0), bands))
    return jnp.moveaxis(out, 0, 1).reshape(B, parts * rows, N, K)[:, :L]


BACKEND = Backend(
    name="xla",
    platforms=("cpu", "gpu", "tpu"),
    refusal=lambda request: None,
    attention=attention,
    splits_queries=True,
)
