"""Bytes that a step must send on its mesh, by formula: what the compiled program's collectives are compared with.

Counted is what no compiler avoids when weights are sharded (ZeRO-3, Rajbhandari et al. 2020, section 7) and heads are
exchanged for tokens (DeepSpeed-Ulysses, Jacobs et al. 2023, section 3.2), with everything in the type of the model's
computation. Weights are gathered in the forward and again in the backward pass, because nobody stores all of them.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core as jax_core

from jworld.planning.collectives import Traffic
from jworld.planning.program import Program


def of(program: Program) -> tuple[Traffic, ...]:
    """Return what each device must send in a step, without what is 0; empty if the run has a critic or a teacher.

    Keys and values are counted with as many heads as queries.
    """
    if program.state.critic is not None or program.system.parts:
        return ()
    passes = 2 * program.optimizer.config.accumulate
    mesh, dtype = dict(program.mesh.shape), jnp.dtype(program.config.model.get("dtype", "float32"))
    rows: dict[tuple[str, str], int] = {}

    def add(kind: str, names: Sequence[str], sent: float) -> None:
        key = kind, " x ".join(names)
        rows[key] = rows.get(key, 0) + round(sent)

    for leaf in jax.tree.leaves((program.state.params, program.state.others)):
        names, size = _sharded(leaf, mesh), leaf.size * min(dtype.itemsize, leaf.dtype.itemsize)
        add("weights, in every pass", names, passes * _gathered(size, names, mesh))
    for leaf in jax.tree.leaves(program.state.params):
        names, size = _sharded(leaf, mesh), leaf.size * min(dtype.itemsize, leaf.dtype.itemsize)
        others = [name for name in mesh if name not in names and mesh[name] > 1]
        shard = size / math.prod(mesh[name] for name in names)
        add("gradients, scattered", names, _gathered(size, names, mesh))
        add("gradients, between replicas", others, 2 * _gathered(shard, others, mesh))
    if mesh["sequence"] > 1:
        # The backward pass exchanges the gradients of the same arrays.
        share = 2 * exchanged(program) * dtype.itemsize / math.prod(mesh.values())
        add("heads, in both passes", ["sequence"], share * (1 - 1 / mesh["sequence"]))
    return tuple(Traffic(kind, axes, 0, sent) for (kind, axes), sent in rows.items() if sent)


def _sharded(leaf: jax.ShapeDtypeStruct, mesh: dict[str, int]) -> list[str]:
    """Return the axes of the mesh over which an array is divided."""
    assert isinstance(leaf.sharding, jax.sharding.NamedSharding)
    entries = [entry if isinstance(entry, tuple) else (entry,) for entry in leaf.sharding.spec]
    found = {name for entry in entries for name in entry if name is not None}
    return [name for name in mesh if name in found and mesh[name] > 1]


def _gathered(size: float, names: Sequence[str], mesh: dict[str, int]) -> float:
    """Return the bytes that each device sends when an array of so many bytes is gathered, or scattered, in a ring."""
    return size * (1 - 1 / math.prod(mesh[name] for name in names))


def exchanged(program: Program) -> int:
    """Return the elements of queries, keys, values and outputs of self-attention in the forward pass of a global batch.

    Cross-attention counts nothing: its few keys are replicated, so that queries could stay where they are.
    """
    state = program.state

    def forward(params: Any, others: Any, ema: Any, batch: Any, key: jax.Array) -> jax.Array:
        averaged = [nnx.merge(program.graphdef, ema, others)] if program.system.loss_takes_ema else []
        model = nnx.merge(program.graphdef, params, others)
        loss: jax.Array = program.system.loss(model, batch, key, *averaged)[0]
        return loss

    with jax.set_mesh(program.mesh):
        jaxpr = jax.make_jaxpr(forward)(state.params, state.others, state.ema, program.batch, program.key)
    return sum(_operands(jaxpr))


def _operands(jaxpr: Any, times: int = 1) -> Iterator[int]:
    """Yield the sizes of the arrays of self-attention in a jaxpr and in all that it calls, as often as loops run."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, inputs = equation.primitive.name, [variable.aval.shape for variable in equation.invars[:3]]
        if name == "shard_map" and [len(shape) for shape in inputs] == [4, 4, 4] and inputs[1] == inputs[2]:
            # Keys before those of the queries' own tokens are few and replicated, such as text.
            if inputs[1][1] >= inputs[0][1]:
                yield times * 4 * math.prod(inputs[0])
            continue
        inner_times = times * equation.params["length"] if name == "scan" else times
        for inner in jax_core.jaxprs_in_params(equation.params):
            yield from _operands(inner, inner_times)
