"""Denoising steps of a chunk as one compiled call or, for chunks that take minutes, as a call per step with a report.

The reports come between calls and not from within a program: JAX stores no program with a callback in its compilation
cache, so every launch would compile it again.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

Carry = TypeVar("Carry")

#: (steps done, all steps of the chunk).
Listener = Callable[[int, int], None]


def described(rows: Any, listener: Listener | None) -> Any:
    """Return the shapes of the `rows` of one call of `run`."""

    def shape(x: np.ndarray) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape if listener is None else (1, *x.shape[1:]), x.dtype)

    return jax.tree.map(shape, rows)


def run(call: Callable[[Carry, Any], Carry], carry: Carry, rows: Any, listener: Listener | None) -> Carry:
    """Run all steps of a chunk.

    Args:
      call: (state, some of `rows`) -> state after these steps; a compiled program.
      carry: state before the first step.
      rows: arrays on the host with one row per step.
      listener: called after every step, which is then a call of its own; None runs all steps in one call.

    Returns:
      State after the last step.
    """
    if listener is None:
        return call(carry, rows)
    steps = len(jax.tree.leaves(rows)[0])
    for i in range(steps):
        carry = jax.block_until_ready(call(carry, jax.tree.map(lambda x, i=i: x[i : i + 1], rows)))
        listener(i + 1, steps)
    return carry
