"""Stacks of equal layers: built once with a leading axis, run under `lax.scan` with a remat policy."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jax import ad_checkpoint

from jworld.models.layers.attention import OUTPUT_NAME, backends
from jworld.utils import nnx_types

Layer = TypeVar("Layer", bound=nnx.Module)
Carry = TypeVar("Carry")
Out = TypeVar("Out")


def _attention_only(decision: Any) -> Callable[..., Any]:
    """Return the policy that applies `decision` to attention outputs and recomputes everything else."""

    def policy(primitive: Any, *_: Any, **parameters: Any) -> Any:
        named = primitive.name == "name" and parameters["name"] == OUTPUT_NAME
        return decision if named or primitive.name in backends.saved_primitives() else ad_checkpoint.Recompute

    return policy


# Remat policies: activations of a layer stored for the backward pass; None stores all of them.
REMAT_POLICIES: dict[str, Any] = {
    "none": None,
    "attention": _attention_only(ad_checkpoint.Saveable),
    "full": jax.checkpoint_policies.nothing_saveable,
    # Same arrays as "attention", offloaded to host memory until the backward pass; no difference on CPUs.
    "offload": _attention_only(ad_checkpoint.Offloadable(src="device", dst="pinned_host")),
}


def stack(make: Callable[[nnx.Rngs], Layer], count: int, rngs: nnx.Rngs) -> Layer:
    """Build `count` modules as one, every leaf with a leading [count] axis of logical name "layer"."""

    @nnx.split_rngs(splits=count)
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: "layer"})
    def build(rngs: nnx.Rngs) -> Layer:
        return make(rngs)

    stacked: Layer = build(rngs)
    return stacked


def layer_range(stacked: Layer, start: int, stop: int) -> Layer:
    """Return the layers `start` to `stop` of a result of `stack`."""
    graphdef, params = nnx.split(stacked)
    return nnx.merge(graphdef, jax.tree.map(lambda leaf: leaf[start:stop], params))


def scan_layers(
    stacked: Layer,
    body: Callable[[Layer, Carry, Any], tuple[Carry, Out]],
    carry: Carry,
    per_layer: Any = None,
    *,
    remat: str,
) -> tuple[Carry, Out]:
    """Run `carry` through the layers.

    Args:
      stacked: result of `stack`.
      body: (layer, carry, slice of per_layer) -> (carry, output).
      carry: pytree that every layer receives and returns with the same shapes and dtypes.
      per_layer: pytree with a leading layer axis, or None.
      remat: a key of REMAT_POLICIES.

    Returns:
      The last carry and the outputs with a leading layer axis.
    """
    graphdef, params = nnx.split(stacked)

    def step(carry: Carry, xs: tuple[nnx_types.State, Any]) -> tuple[Carry, Out]:
        layer_params, inputs = xs
        return body(nnx.merge(graphdef, layer_params), carry, inputs)

    if REMAT_POLICIES[remat] is not None:
        step = jax.checkpoint(step, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(step, carry, (params, per_layer))


def period(kinds: Sequence[Any]) -> int:
    """Return the length of the shortest pattern that `kinds` repeats; the last repetition may be incomplete."""
    return next(n for n in range(1, len(kinds) + 1) if all(kind == kinds[i % n] for i, kind in enumerate(kinds)))


def scan_kinds(
    stacked: Layer,
    kinds: Sequence[Any],
    body: Callable[[Layer, Carry, Any, jax.Array], Carry],
    carry: Carry,
    *,
    remat: str,
) -> Carry:
    """Run `scan_layers` over equal layers of different kinds, such as sliding and full attention.

    Return the last carry.

    The body is traced once per run of layers of one kind in the repeated pattern.

    Args:
      stacked: result of `stack`.
      kinds: of every layer.
      body: (layer, carry, kind, its index among the layers of this kind, int32) -> carry.
      carry: as in `scan_layers`.
      remat: a key of REMAT_POLICIES.
    """
    graphdef, params = nnx.split(stacked)
    length = period(kinds)
    counts = {kind: list(kinds[:length]).count(kind) for kind in kinds}

    def pattern(carry: Carry, part: nnx_types.State, kinds: Sequence[Any], repetition: Any) -> Carry:
        start = 0
        for kind, run in itertools.groupby(kinds):
            stop = start + len(list(run))
            before = list(kinds[:start]).count(kind) + repetition * counts[kind]

            def step(layer: Layer, carry: Carry, number: jax.Array, kind: Any = kind) -> tuple[Carry, None]:
                return body(layer, carry, kind, number), None

            layers = nnx.merge(graphdef, jax.tree.map(lambda leaf, a=start, b=stop: leaf[a:b], part))
            carry, _ = scan_layers(layers, step, carry, before + jnp.arange(stop - start), remat=remat)
            start = stop
        return carry

    repetitions, rest = divmod(len(kinds), length)
    whole = repetitions * length
    if repetitions:
        groups = jax.tree.map(
            lambda leaf: einops.rearrange(leaf[:whole], "(r l) ... -> r l ...", r=repetitions), params
        )

        def group(carry: Carry, xs: tuple[nnx_types.State, jax.Array]) -> tuple[Carry, None]:
            return pattern(carry, xs[0], kinds[:length], xs[1]), None

        carry, _ = jax.lax.scan(group, carry, (groups, jnp.arange(repetitions)))
    if rest:
        tail = jax.tree.map(lambda leaf: leaf[whole:], params)
        carry = pattern(carry, tail, kinds[whole:], repetitions)
    return carry
