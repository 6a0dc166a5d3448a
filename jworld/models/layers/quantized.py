"""Weights of 8 bits for sampling: large matrices of stacked layers as `qwix.QArray`, with a scale per output channel.

Only weights are quantized, symmetrically; activations and products keep their types. `layers.stack` dequantizes the
weights of one layer at a time within its loop, so that a stack never exists in full precision. The package qwix is
needed for models with quantized weights only (extra `quantize`).
"""

import dataclasses
import functools
import importlib.util
import re
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from jworld.parallel.axes import constrain
from jworld.utils import errors, nnx_types

#: Kinds of quantization, and the types in which weights are stored.
DTYPES: Mapping[str, Any] = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}
KINDS = tuple(DTYPES)
#: Largest magnitude of a channel -> end of the range. qwix maps it to 127.5 of int8, where the least difference in
#: a quotient decides between -127 and -128, so that devices would differ; here it is 127.
_CALIBRATION: Mapping[str, str] = {"int8": f"absmax,{127.5 / 127}", "fp8": "absmax"}
#: Paths of the quantized parameters: all matrices of the layers of a stack. Norms, biases, low-rank adapters, and all
#: that a network has once, such as embeddings, keep their types.
QUANTIZED = r"(.*/)?kernel"


def check_installed() -> None:
    """Raise a `UserError` if qwix is not installed."""
    if importlib.util.find_spec("qwix") is None:
        raise errors.UserError("qwix is not installed, which --quantize needs: pip install 'jworld[quantize]'")


def is_quantized(path: tuple[Any, ...], leaf: nnx.Variable[Any]) -> bool:
    """Return whether the parameter at `path` is one of those that are quantized: [layers, inputs, outputs]."""
    axes = leaf.get_metadata().get("out_sharding") or (None,)
    is_matrix = axes[0] == "layer" and len(leaf.shape) == 3
    return is_matrix and re.fullmatch(QUANTIZED, "/".join(map(str, path))) is not None


def quantized(x: jax.Array, kind: str) -> Any:
    """Quantize matrices [..., inputs, outputs] to a `QArray` with scales [..., 1, outputs] float32.

    The scale of an output channel maps its largest magnitude to the end of the type's range.
    """
    import qwix

    axes = [axis for axis in range(x.ndim) if axis != x.ndim - 2]
    # In float32 also for weights of 16 bits: their quotients would be rounded twice.
    return qwix.quantize(
        x.astype(jnp.float32), DTYPES[kind], channelwise_axes=axes, calibration_method=_CALIBRATION[kind]
    )


def dequantized(tree: Any) -> Any:
    """Return a pytree with float32 arrays in place of quantized ones; a tree without any is returned as it is."""
    # Without the import there are none.
    qwix: Any = sys.modules.get("qwix")
    if qwix is None:
        return tree

    def is_whole(x: Any) -> bool:
        return isinstance(x, qwix.QArray)

    def whole(x: Any) -> Any:
        if not is_whole(x):
            return x
        # Every chip computes with whole matrices. They are sent in 8 bits, and not after the conversion.
        return qwix.dequantize(jax.tree.map(lambda part: constrain(part, *[None] * part.ndim), x))

    return jax.tree.map(whole, tree, is_leaf=is_whole)


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """Quantization of a model's parameters, one at a time, while they are read.

    Attributes:
      kind: a key of `DTYPES`.
      described: descriptions of all parameters as they are after quantization.
      targets: those of the quantized ones by path, such as "blocks/mlp/up/kernel".
    """

    kind: str
    described: nnx_types.State
    targets: Mapping[str, Any]

    @classmethod
    def of(cls, abstract: nnx_types.State, kind: str) -> "Quantizer":
        """Set up the quantization of parameters with the descriptions `abstract`, whose shardings are kept.

        Raises:
          UserError: qwix is not installed, or the model has no matrices that are quantized.
        """
        check_installed()
        leaves, targets = [], {}
        for path, leaf in nnx.to_flat_state(abstract):
            if is_quantized(path, leaf):
                target = targets["/".join(map(str, path))] = _described(leaf.get_value(), kind)
                leaf = leaf.replace(target)
            leaves.append((path, leaf))
        if not targets:
            raise errors.UserError(
                f"--quantize {kind}: this model has no stacks of layers, whose matrices would be quantized: leave it "
                "out"
            )
        return cls(kind, nnx.from_flat_state(leaves), targets)

    def __call__(self, name: str, array: jax.Array) -> Any:
        """Return the parameter `name` quantized, and delete `array`; others are returned as they are."""
        if name not in self.targets:
            return array
        placed = jax.tree.map(lambda x: x.sharding, self.targets[name])
        result = jax.block_until_ready(_program(self.kind, placed)(array))
        array.delete()
        return result


def described_model(model: nnx.Module, kind: str) -> nnx.Module:
    """Return a model with descriptions of its weights as they are after quantization; `model` has descriptions, too."""
    graphdef, params = nnx.split(model)
    described: nnx.Module = nnx.merge(graphdef, Quantizer.of(params, kind).described)
    return described


@functools.lru_cache
def _program(kind: str, placed: Any) -> Any:
    return jax.jit(functools.partial(quantized, kind=kind), out_shardings=placed)


def _described(x: jax.ShapeDtypeStruct, kind: str) -> Any:
    """Describe the result of `quantized`: sharded as `x`, scales along the outputs only."""
    shapes = jax.eval_shape(functools.partial(quantized, kind=kind), jax.ShapeDtypeStruct(x.shape, x.dtype))
    if not isinstance(x.sharding, NamedSharding):
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=x.sharding), shapes)
    spec = (*x.sharding.spec, *[None] * (len(x.shape) - len(x.sharding.spec)))

    def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        own = PartitionSpec(*(axis if size > 1 else None for size, axis in zip(leaf.shape, spec, strict=True)))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(x.sharding.mesh, own))

    return jax.tree.map(placed, shapes)
