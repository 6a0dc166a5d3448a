"""Reports of single denoising steps from within compiled samplers, for chunks that take minutes."""

from collections.abc import Callable

import jax

#: (steps done, all steps of the chunk).
Listener = Callable[[int, int], None]


def report(listener: Listener | None, step: jax.Array | int, steps: int, result: jax.Array) -> None:
    """Call `listener` as soon as `result`, that of step number `step` from 0 on, is computed; None calls nobody.

    A sampler without a listener compiles to the same program as one without this call.
    """
    if listener is None:
        return
    call = listener
    # The element makes the call wait for the result.
    jax.debug.callback(lambda index, _: call(int(index) + 1, steps), step, result[(0,) * result.ndim])
