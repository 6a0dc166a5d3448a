"""Ring attention: queries stay, keys and values rotate around the devices (https://arxiv.org/abs/2310.01889).

All functions here run on one device, inside `jax.shard_map`. The backward pass recomputes logits block by block, from
the row statistics of the forward pass. No array of size queries x keys is stored.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

LOW = -1e30
#: Maximum number of logits (float32) of one block that are computed at once.
MAX_LOGITS = 2**26


@dataclasses.dataclass(frozen=True)
class Ring:
    """Layout of the rings, the same on all devices.

    Attributes:
      axis: mesh axis. Its devices are `size` groups of `stride`; devices of equal rank in their groups form one ring.
      size: devices in a ring.
      stride: number of parallel rings.
      lead: keys that every device holds; they come before those that rotate.
      width: as in `models.layers.attention.Mask`.
      halves: 2 if late queries attend to more keys than early ones: device i of n then has the parts i and 2n - 1 - i
        of 2n, which balances the work. 1 for consecutive tokens.
      name: of the output and the row statistics, for remat policies.
    """

    axis: str
    size: int
    stride: int
    lead: int
    width: int | None
    halves: int
    name: str

    def place(self) -> jax.Array:
        """Return the position of this device in its ring."""
        return jax.lax.axis_index(self.axis) // self.stride

    def parts(self, place: jax.Array) -> list[jax.Array]:
        """Return the indices of the parts of the sequence at a position of the ring."""
        return [place] if self.halves == 1 else [place, 2 * self.size - 1 - place]

    def send(self, x: jax.Array, targets: list[int]) -> jax.Array:
        """Send from position i to position targets[i]."""
        pairs = [
            (i * self.stride + rank, target * self.stride + rank)
            for i, target in enumerate(targets)
            for rank in range(self.stride)
        ]
        received: jax.Array = jax.lax.ppermute(x, self.axis, pairs)
        return received

    def turn(self, x: jax.Array) -> jax.Array:
        """Send to the next position."""
        return self.send(x, [(i + 1) % self.size for i in range(self.size)])


def balance(ring: Ring, x: jax.Array) -> jax.Array:
    """Exchange consecutive tokens [B, L, ...] of every position for its parts of the sequence, concatenated."""
    if ring.halves == 1:
        return x
    n, even = ring.size, ring.place() % 2 == 0
    halves = jnp.split(x, 2, axis=1)
    targets = [[min(j, 2 * n - 1 - j) for j in range(first, 2 * n, 2)] for first in (0, 1)]
    a, b = (ring.send(half, target) for half, target in zip(halves, targets, strict=True))
    return jnp.concatenate([jnp.where(even, a, b), jnp.where(even, b, a)], axis=1)


def restore(ring: Ring, x: jax.Array) -> jax.Array:
    """Invert `balance`."""
    if ring.halves == 1:
        return x
    n, even = ring.size, ring.place() % 2 == 0
    low, high = jnp.split(x, 2, axis=1)
    parts = [[i if i % 2 == first else 2 * n - 1 - i for i in range(n)] for first in (0, 1)]
    a = ring.send(jnp.where(even, low, high), [part // 2 for part in parts[0]])
    b = ring.send(jnp.where(even, high, low), [part // 2 for part in parts[1]])
    return jnp.concatenate([a, b], axis=1)


class Operands(NamedTuple):
    """Arrays of one device.

    Attributes:
      q, k, v: [B, L, N, K] its tokens, in the order of `balance`.
      lead_k, lead_v: [B, lead, N, K] the keys that every device holds.
      key_mask: [B, lead + all keys that rotate] bool.
      stops: [all queries] int32 of the mask.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    lead_k: jax.Array
    lead_v: jax.Array
    key_mask: jax.Array
    stops: jax.Array


class _Block(NamedTuple):
    """Keys and values [B, S, N, K] from position `start` of all keys, and their validity [B, S]."""

    k: jax.Array
    v: jax.Array
    start: jax.Array
    valid: jax.Array


# The axis of query rows is second to last, as in [B, N, L, K]. A state is (largest logit, sum, output) of the online
# softmax (https://arxiv.org/abs/1805.02867), or the gradients of the rows of q and of a block's k and v.
Arrays = tuple[jax.Array, ...]
#: Carries of the loops over turns. Forward: k, v and the states of the rows of q. Backward: k, v, the gradients of the
#: rows of q, and the gradients of k and v.
States = tuple[jax.Array, jax.Array, list[Arrays]]
Gradients = tuple[jax.Array, jax.Array, list[jax.Array], list[Arrays]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attention(ring: Ring, x: Operands) -> jax.Array:
    """Attend from every query of this device to all keys of the ring: [B, L, N, K] in the dtype of v."""
    return _forward(ring, x)[0]


def _forward(ring: Ring, x: Operands) -> tuple[jax.Array, tuple[Operands, jax.Array, jax.Array]]:
    queries = _rows(ring, jnp.swapaxes(x.q, 1, 2))
    B, N, L, K = queries[0].shape
    start = (jnp.full((B, N, L), LOW), jnp.zeros((B, N, L)), jnp.zeros((B, N, L, K)))

    def update(states: list[Arrays], blocks: list[_Block]) -> list[Arrays]:
        for block in blocks:
            for i, (q, stops) in enumerate(zip(queries, _stops(ring, x), strict=True)):
                run = functools.partial(_attend_block, q, stops, block, ring.width)
                states[i] = jax.lax.cond(_any_visible(stops, block, ring.width), run, lambda state: state, states[i])
        return states

    def step(carry: States, turn: jax.Array) -> tuple[States, None]:
        k, v, states = carry
        k, v = ring.turn(k), ring.turn(v)
        return (k, v, update(states, _blocks(ring, x, k, v, turn))), None

    states = update([start] * ring.halves, _lead(ring, x) + _blocks(ring, x, x.k, x.v, 0))
    (_, _, states), _ = jax.lax.scan(step, (x.k, x.v, states), jnp.arange(1, ring.size))
    top, total, acc = (jnp.concatenate(parts, axis=2) for parts in zip(*states, strict=True))
    # Padded rows may have no visible key.
    total = jnp.where(total == 0, 1, total)
    out = jnp.swapaxes(acc / total[..., None], 1, 2).astype(x.v.dtype)
    out, stats = (checkpoint_name(part, ring.name) for part in (out, top + jnp.log(total)))
    return out, (x, out, stats)


def _backward(ring: Ring, saved: tuple[Operands, jax.Array, jax.Array], d_out: jax.Array) -> tuple[Operands]:
    x, out, stats = saved
    products = jnp.einsum("bqnk,bqnk->bnq", out.astype(jnp.float32), d_out.astype(jnp.float32))
    arrays = (jnp.swapaxes(x.q, 1, 2), jnp.swapaxes(d_out, 1, 2), stats, products)
    rows = list(zip(*(_rows(ring, array) for array in arrays), strict=True))

    def update(dq: list[jax.Array], blocks: list[_Block], grads: list[Arrays]) -> None:
        for j, block in enumerate(blocks):
            for i, (given, stops) in enumerate(zip(rows, _stops(ring, x), strict=True)):
                run = functools.partial(_pull_block, given, stops, block, ring.width)
                state = (dq[i], *grads[j])
                dq[i], *grads[j] = jax.lax.cond(_any_visible(stops, block, ring.width), run, lambda state: state, state)

    def zeros(blocks: list[_Block]) -> list[Arrays]:
        return [(jnp.zeros(b.k.shape, jnp.float32), jnp.zeros(b.v.shape, jnp.float32)) for b in blocks]

    def step(carry: Gradients, turn: jax.Array) -> tuple[Gradients, None]:
        k, v, dq, grads = carry
        k, v, grads = jax.tree.map(ring.turn, (k, v, grads))
        update(dq, _blocks(ring, x, k, v, turn), grads)
        return (k, v, dq, [tuple(pair) for pair in grads]), None

    lead, own = _lead(ring, x), _blocks(ring, x, x.k, x.v, 0)
    dq, lead_grads, grads = [jnp.zeros(row[0].shape, jnp.float32) for row in rows], zeros(lead), zeros(own)
    update(dq, lead, lead_grads)
    update(dq, own, grads)
    start = (x.k, x.v, dq, [tuple(pair) for pair in grads])
    (_, _, dq, grads), _ = jax.lax.scan(step, start, jnp.arange(1, ring.size))
    # One more turn brings the gradients to the owner of their keys.
    dk, dv = (ring.turn(jnp.concatenate(parts, axis=1)) for parts in zip(*grads, strict=True))
    lead_dk, lead_dv = lead_grads[0] if lead else (x.lead_k, x.lead_v)
    gradients = (jnp.swapaxes(jnp.concatenate(dq, axis=2), 1, 2), dk, dv, lead_dk, lead_dv)
    cast: list[Any] = [gradient.astype(of.dtype) for gradient, of in zip(gradients, x[:5], strict=True)]
    # Neither the key mask nor the stops have a gradient.
    return (Operands._make([*cast, None, None]),)


attention.defvjp(_forward, _backward)


def _rows(ring: Ring, x: jax.Array) -> list[jax.Array]:
    return jnp.split(x, ring.halves, axis=2)


def _stops(ring: Ring, x: Operands) -> list[jax.Array]:
    size = x.q.shape[1] // ring.halves
    return [jax.lax.dynamic_slice_in_dim(x.stops, part * size, size) for part in ring.parts(ring.place())]


def _lead(ring: Ring, x: Operands) -> list[_Block]:
    return [_Block(x.lead_k, x.lead_v, jnp.int32(0), x.key_mask[:, : ring.lead])] if ring.lead else []


def _blocks(ring: Ring, x: Operands, k: jax.Array, v: jax.Array, turn: jax.Array | int) -> list[_Block]:
    """Return the blocks on this device after `turn` turns."""
    size = k.shape[1] // ring.halves
    starts = [ring.lead + part * size for part in ring.parts((ring.place() - turn) % ring.size)]
    triples = zip(jnp.split(k, ring.halves, axis=1), jnp.split(v, ring.halves, axis=1), starts, strict=True)
    return [_Block(k, v, at, jax.lax.dynamic_slice_in_dim(x.key_mask, at, size, axis=1)) for k, v, at in triples]


def _any_visible(stops: jax.Array, block: _Block, width: int | None) -> jax.Array:
    """Return whether the mask lets any of the queries attend to any key of the block."""
    visible = block.start < stops[-1]
    return visible if width is None else visible & (block.start + block.k.shape[1] > stops[0] - width)


def _weights(q: jax.Array, stops: jax.Array, block: _Block, width: int | None) -> tuple[jax.Array, jax.Array]:
    """Return logits [B, N, L, S] float32, LOW where masked, and the mask of visible keys."""
    positions = block.start + jnp.arange(block.k.shape[1])
    within = positions < stops[:, None]
    if width is not None:
        within &= positions >= stops[:, None] - width
    visible = (within & block.valid[:, None])[:, None]
    logits = jnp.einsum("bnqk,bsnk->bnqs", q, block.k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    return jnp.where(visible, logits, LOW), visible


def _attend_block(q: jax.Array, stops: jax.Array, block: _Block, width: int | None, state: Arrays) -> Arrays:
    """Update the state of the online softmax with one more block of keys."""

    def part(rows: tuple[jax.Array, jax.Array, Arrays]) -> Arrays:
        q, stops, (top, total, acc) = rows
        logits, visible = _weights(q, stops, block, width)
        new_top = jnp.maximum(top, jnp.max(logits, axis=-1))
        weights = jnp.where(visible, jnp.exp(logits - new_top[..., None]), 0)
        shrink = jnp.exp(top - new_top)
        new = jnp.einsum("bnqs,bsnk->bnqk", weights.astype(block.v.dtype), block.v, preferred_element_type=jnp.float32)
        return new_top, total * shrink + jnp.sum(weights, axis=-1), acc * shrink[..., None] + new

    count = _part_count(q, block)
    new_state: Arrays = jax.tree.map(_joined, jax.lax.map(part, _in_parts((q, stops, state), count)))
    return new_state


def _pull_block(given: Arrays, stops: jax.Array, block: _Block, width: int | None, state: Arrays) -> Arrays:
    """Add the gradients of q, k and v of one block to `state`; `given` is q, d_out, row statistics, products."""

    def part(carry: Arrays, rows: tuple[Arrays, jax.Array]) -> tuple[Arrays, jax.Array]:
        (q, d_out, stats, products), stops = rows
        logits, visible = _weights(q, stops, block, width)
        weights = jnp.where(visible, jnp.exp(logits - stats[..., None]), 0)
        d_weights = jnp.einsum("bnqk,bsnk->bnqs", d_out, block.v, preferred_element_type=jnp.float32)
        d_logits = (weights * (d_weights - products[..., None]) * q.shape[-1] ** -0.5).astype(q.dtype)
        einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
        dv = einsum("bnqs,bnqk->bsnk", weights.astype(d_out.dtype), d_out)
        dk = einsum("bnqs,bnqk->bsnk", d_logits, q)
        return (carry[0] + dk, carry[1] + dv), einsum("bnqs,bsnk->bnqk", d_logits, block.k)

    grads, dq = jax.lax.scan(part, state[1:], _in_parts((given, stops), _part_count(given[0], block)))
    return state[0] + _joined(dq), *grads


def _part_count(q: jax.Array, block: _Block) -> int:
    """Return the number of equal parts of the rows [B, N, L, K] that keeps the logits of one part below MAX_LOGITS."""
    B, N, L, _ = q.shape
    least = math.ceil(B * N * L * block.k.shape[1] / MAX_LOGITS)
    return next(count for count in range(min(least, L), L + 1) if L % count == 0)


def _in_parts(rows: Any, count: int) -> Any:
    """Split every array's axis of rows, 0 or 2, into a leading axis of parts."""

    def parted(x: jax.Array) -> jax.Array:
        return jnp.stack(jnp.split(x, count, axis=min(2, x.ndim - 1)))

    return jax.tree.map(parted, rows)


def _joined(x: jax.Array) -> jax.Array:
    """Concatenate parts: [parts, B, N, rows, ...] -> [B, N, L, ...]."""
    return jnp.concatenate(list(x), axis=2) if len(x) > 1 else x[0]
