"""Attention over a sequence that is split over devices.

Tokens arrive split over the mesh axis of the logical axis `sequence` and leave so. In between, heads are split instead,
and every device holds all tokens of its heads (Ulysses, https://arxiv.org/abs/2309.14509). A single head cannot be:
then the queries stay split, and every device holds all keys.
"""

from typing import Protocol

import jax
from jax.sharding import PartitionSpec

from jworld.parallel import axes


class Attention(Protocol):
    """[B, Lq, N, K], [B, Lk, N, K] twice, [B, Lk] or None -> [B, Lq, N, K]."""

    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array, *, key_mask: jax.Array | None) -> jax.Array: ...


def heads_split(
    attention: Attention, q: jax.Array, k: jax.Array, v: jax.Array, key_mask: jax.Array | None
) -> jax.Array:
    """`attention` on every device for its samples and heads; without a mesh just `attention`."""
    if jax.sharding.get_abstract_mesh().size <= 1:
        return attention(q, k, v, key_mask=key_mask)
    q, k, v = (axes.constrain(x, "batch", None, "attention_heads", None) for x in (q, k, v))
    whole = axes.dividing_spec(q.shape, "batch", None, "attention_heads", None)

    def local(q: jax.Array, k: jax.Array, v: jax.Array, key_mask: jax.Array | None) -> jax.Array:
        return attention(q, k, v, key_mask=key_mask)

    # check_vma knows no Pallas kernels.
    specs = (whole, whole, whole, PartitionSpec(*whole[:1]))
    out = jax.shard_map(local, in_specs=specs, out_specs=whole, check_vma=False)(q, k, v, key_mask)
    return axes.constrain(out, "batch", "sequence", None, None)


def queries_split(
    attention: Attention, q: jax.Array, k: jax.Array, v: jax.Array, key_mask: jax.Array | None
) -> jax.Array:
    """`attention` in XLA operations, every device for its samples and queries; what does not divide stays whole."""
    q, k, v = (axes.spread(x, "batch", tokens, None, None) for x, tokens in ((q, "sequence"), (k, None), (v, None)))
    return axes.spread(attention(q, k, v, key_mask=key_mask), "batch", "sequence", None, None)
