"""Attention over a sequence that is sharded over devices.

Tokens enter and leave sharded over the mesh axis of the logical axis `sequence`. In between, heads are sharded instead,
and every device holds all tokens of its heads (Ulysses, https://arxiv.org/abs/2309.14509). A single head cannot be
split: then the queries stay sharded, and every device holds all keys. If the number of devices does not divide the
heads, heads are split over their greatest common divisor, and keys and values rotate in rings over the rest (`ring`).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jworld.parallel import axes, ring

#: [B, Lq, N, K], [B, Lk, N, K] twice -> [B, Lq, N, K]; keyword arguments are arrays [B, ...].
Attention = Callable[..., jax.Array]


def heads_split(attention: Attention, q: jax.Array, k: jax.Array, v: jax.Array, of_sample: dict[str, Any]) -> jax.Array:
    """Run `attention` on every device for its samples and heads; without a mesh run it directly."""
    if jax.sharding.get_abstract_mesh().size <= 1:
        return attention(q, k, v, **of_sample)
    q, k, v = (axes.constrain(x, "batch", None, "attention_heads", None) for x in (q, k, v))
    whole = axes.dividing_spec(q.shape, "batch", None, "attention_heads", None)

    def local(q: jax.Array, k: jax.Array, v: jax.Array, of_sample: dict[str, Any]) -> jax.Array:
        return attention(q, k, v, **of_sample)

    # check_vma does not support Pallas kernels.
    specs = (whole, whole, whole, PartitionSpec(*whole[:1]))
    out = jax.shard_map(local, in_specs=specs, out_specs=whole, check_vma=False)(q, k, v, of_sample)
    return axes.constrain(out, "batch", "sequence", None, None)


def queries_split(
    attention: Attention, q: jax.Array, k: jax.Array, v: jax.Array, of_sample: dict[str, Any]
) -> jax.Array:
    """Run `attention` in XLA operations, on every device for its samples and queries.

    A dimension that its mesh axes do not divide is replicated.
    """
    q, k, v = (
        axes.constrain_if_divisible(x, "batch", tokens, None, None)
        for x, tokens in ((q, "sequence"), (k, None), (v, None))
    )
    return axes.constrain_if_divisible(attention(q, k, v, **of_sample), "batch", "sequence", None, None)


def devices() -> int:
    """Return the number of devices that the tokens of a sample are sharded over."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape[_axis()]


def rings(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    key_mask: jax.Array | None,
    *,
    stops: np.ndarray | None,
    width: int | None,
    name: str,
) -> jax.Array:
    """Compute attention with heads split over as many devices as divide them, and rings over the rest.

    Args:
      q, k, v, key_mask: as in `models.layers.attention`.
      stops, width: of its mask; None if every query attends to every key.
      name: of the arrays that remat policies may save.
    """
    B, queries, N, _ = q.shape
    keys, count = k.shape[1], devices()
    groups = math.gcd(N, count)
    # The few keys before those of the queries' own tokens (text before video) are replicated.
    lead = keys - queries if queries <= keys < 2 * queries else keys % count
    plan = ring.Ring(
        axis=_axis(),
        size=count // groups,
        stride=groups,
        lead=lead,
        width=width,
        halves=1 if stops is None else 2,
        name=name,
    )
    unit = count * plan.halves
    padded_queries, padded_keys = (math.ceil(length / unit) * unit for length in (queries, keys - lead))
    stops = np.full(queries, keys, np.int32) if stops is None else stops
    valid = jnp.ones((B, keys), bool) if key_mask is None else key_mask
    samples, split = (axes.dividing_spec((B, padded_queries), "batch", name) for name in (None, "sequence"))
    operands = ring.Operands(
        q=_padded(q, padded_queries),
        k=_padded(k[:, lead:], padded_keys),
        v=_padded(v[:, lead:], padded_keys),
        lead_k=k[:, :lead],
        lead_v=v[:, :lead],
        key_mask=_padded(valid, lead + padded_keys),
        stops=jnp.asarray(np.pad(stops, (0, padded_queries - queries), mode="edge")),
    )
    specs: Any = (split, split, split, samples, samples, samples, PartitionSpec())
    local = functools.partial(_local_rings, plan)
    out = jax.shard_map(local, in_specs=(ring.Operands(*specs),), out_specs=split, check_vma=False)(operands)
    return axes.constrain(out[:, :queries], "batch", "sequence", None, None)


def _local_rings(plan: ring.Ring, x: ring.Operands) -> jax.Array:
    members = [[i * plan.stride + j for j in range(plan.stride)] for i in range(plan.size)]
    exchange = functools.partial(jax.lax.all_to_all, axis_name=plan.axis, axis_index_groups=members, tiled=True)
    if plan.stride > 1:
        heads = x.q.shape[2] // plan.stride
        first = jax.lax.axis_index(plan.axis) % plan.stride * heads
        q, k, v = (exchange(part, split_axis=2, concat_axis=1) for part in (x.q, x.k, x.v))
        lead_k, lead_v = (jax.lax.dynamic_slice_in_dim(part, first, heads, axis=2) for part in (x.lead_k, x.lead_v))
        x = x._replace(q=q, k=k, v=v, lead_k=lead_k, lead_v=lead_v)
    x = x._replace(q=ring.balance(plan, x.q), k=ring.balance(plan, x.k), v=ring.balance(plan, x.v))
    out = ring.restore(plan, ring.attention(plan, x))
    return exchange(out, split_axis=1, concat_axis=2) if plan.stride > 1 else out


def _axis() -> str:
    (axis,) = axes.partition_spec(("sequence",))
    assert isinstance(axis, str)
    return axis


def _padded(x: jax.Array, length: int) -> jax.Array:
    """Pad [B, L, ...] to [B, length, ...] with zeros at the end."""
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])
