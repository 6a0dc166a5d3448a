"""Counts of the matrix products and convolutions of a traced function, with loop bodies once or per iteration."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend import core as jax_core


class Products(NamedTuple):
    """Floating-point operations of products; a multiply-add counts as two.

    Attributes:
      all: loop bodies counted once per iteration.
      bodies_once: every loop body counted once, as in XLA's cost analysis.
    """

    all: float = 0.0
    bodies_once: float = 0.0

    def plus(self, other: "Products", times: float = 1.0, *, loop: bool = False) -> "Products":
        return Products(self.all + times * other.all, self.bodies_once + (1.0 if loop else times) * other.bodies_once)


def count(jaxpr: Any) -> Products:
    """Count the products in a (closed) jaxpr and in all jaxprs that it calls.

    Recomputation in a backward pass counts, too. A conditional counts as its largest branch.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = Products()
    for equation in jaxpr.eqns:
        params, name = equation.params, equation.primitive.name
        if name == "dot_general":
            own = _dot(equation)
            total = total.plus(Products(own, own))
        elif name == "conv_general_dilated":
            own = _convolution(equation)
            total = total.plus(Products(own, own))
        elif name == "scan":
            total = total.plus(count(params["jaxpr"]), params["length"], loop=True)
        elif name == "cond":
            total = total.plus(max((count(branch) for branch in params["branches"]), key=lambda c: c.all))
        elif name == "shard_map":
            # The body is the work of one device; the name of its axes depends on the version of JAX.
            axes = params["manual_axes"] if "manual_axes" in params else params["newly_manual_axes"]
            devices = math.prod(params["mesh"].shape[axis] for axis in axes)
            total = total.plus(count(params["jaxpr"]), devices)
        else:
            for inner in jax_core.jaxprs_in_params(params):
                total = total.plus(count(inner))
    return total


def _dot(equation: Any) -> float:
    contracted: Sequence[int] = equation.params["dimension_numbers"][0][0]
    left: tuple[int, ...] = equation.invars[0].aval.shape
    out: tuple[int, ...] = equation.outvars[0].aval.shape
    return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution(equation: Any) -> float:
    kernel: tuple[int, ...] = equation.invars[1].aval.shape
    out: tuple[int, ...] = equation.outvars[0].aval.shape
    # rhs_spec: output channels, input channels of one group, then spatial dimensions.
    dimensions: Sequence[int] = equation.params["dimension_numbers"].rhs_spec
    return 2.0 * math.prod(out) * math.prod(kernel[axis] for axis in dimensions[1:])
