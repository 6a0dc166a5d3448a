"""Stacks of equal layers: built once with a leading axis, run under `lax.scan` with a remat policy."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import ad_checkpoint

from jworld.models.layers import quantized
from jworld.models.layers.attention import OUTPUT_NAME, backends, base

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


def scan_layers(
    stacked: Layer,
    body: Callable[[Layer, Carry, Any], tuple[Carry, Out]],
    carry: Carry,
    per_layer: Any = None,
    *,
    remat: str,
    layers: tuple[int, int] | None = None,
) -> tuple[Carry, Out]:
    """Run `carry` through the layers; no more than one layer's weights are copied, or dequantized.

    Args:
      stacked: result of `stack`.
      body: (layer, carry, slice of per_layer) -> (carry, output).
      carry: pytree that every layer receives and returns with the same shapes and dtypes.
      per_layer: pytree with a leading axis of the layers that are run, or None.
      remat: a key of REMAT_POLICIES.
      layers: first layer to run, and the layer after the last one; None runs all.

    Returns:
      The last carry and the outputs with a leading layer axis.
    """
    graphdef, params = nnx.split(stacked)
    count = len(jax.tree.leaves(params)[0])
    start, stop = layers or (0, count)
    # Those of all layers, scanned by JAX, which stores no slices for the backward pass; and those indexed here.
    params_xs, params_whole, merge_params = _divided(params, is_indexed=(start, stop) != (0, count))
    inputs_xs, inputs_whole, merge_inputs = _divided(per_layer, is_indexed=False)

    def step(carry: Carry, xs: tuple[jax.Array, list[jax.Array], list[jax.Array]]) -> tuple[Carry, Out]:
        i, layer_params, inputs = xs
        layer = merge_params(layer_params, [indexed(leaf, i) for leaf in params_whole])
        whole = [indexed(leaf, i - start) for leaf in inputs_whole]
        layer, inputs = quantized.dequantized((layer, merge_inputs(inputs, whole)))
        return body(nnx.merge(graphdef, layer), carry, inputs)

    if REMAT_POLICIES[remat] is not None:
        step = jax.checkpoint(step, policy=REMAT_POLICIES[remat], prevent_cse=False)
    return jax.lax.scan(step, carry, (jnp.arange(start, stop), params_xs, inputs_xs))


Merge = Callable[[list[jax.Array], list[jax.Array]], Any]


def _divided(tree: Any, *, is_indexed: bool) -> tuple[list[jax.Array], list[jax.Array], Merge]:
    """Return the leaves that a loop scans, those that it indexes, and a function that merges slices of both.

    Some layers of a stack are indexed, because a slice as a scanned input would be a copy. The compilers write
    gradients in place for them, too. All leaves of less than 32 bits are indexed on CPUs, see `unhoisted`.
    """
    leaves, structure = jax.tree.flatten(tree)
    chosen = [is_indexed or _is_widened(leaf) for leaf in leaves]

    def merge(xs: list[jax.Array], parts: list[jax.Array]) -> Any:
        sources = {False: iter(xs), True: iter(parts)}
        return jax.tree.unflatten(structure, [next(sources[choice]) for choice in chosen])

    xs, whole = ([leaf for leaf, choice in zip(leaves, chosen, strict=True) if choice is x] for x in (False, True))
    return xs, whole, merge


def indexed(leaf: jax.Array, i: jax.Array) -> jax.Array:
    """Return part `i` of an array, without a copy of the whole; see `unhoisted`."""
    part: jax.Array = jax.lax.dynamic_index_in_dim(unhoisted(leaf, i), i, keepdims=False)
    return part


def _is_widened(leaf: jax.Array) -> bool:
    return base.target_platform() == "cpu" and jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4


@jax.custom_jvp
def _tied(x: jax.Array, index: jax.Array) -> jax.Array:
    tied: jax.Array = jax.lax.optimization_barrier((x, index))[0]
    return tied


# The tangent is not tied: compilers write the gradients of parts in place.
_tied.defjvp(lambda primals, tangents: (_tied(*primals), tangents[0]))


def unhoisted(x: jax.Array, index: jax.Array, *, kernels: bool = False) -> jax.Array:
    """Return `x` such that its conversion to float32 stays within a loop that uses a part of it, by `index`.

    XLA's CPU backend computes in float32 what it cannot compute in smaller types. It would convert an array that does
    not change in the loop as a whole, before the loop. The array seems to depend on `index`, which changes. With
    `kernels` this holds for arrays of any type, because kernels of convolutions are copied to another layout, too.
    """
    is_copied = kernels and base.target_platform() == "cpu"
    return _tied(x, index) if is_copied or _is_widened(x) else x


def period(kinds: Sequence[Any]) -> int:
    """Return the length of the shortest pattern that `kinds` repeats; the last repetition may be incomplete."""
    return next(n for n in range(1, len(kinds) + 1) if all(kind == kinds[i % n] for i, kind in enumerate(kinds)))
