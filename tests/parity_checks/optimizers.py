"""Optimizers: updates of the original systems."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from jworld.training import muon


def to_kernel(x: np.ndarray) -> np.ndarray:
    """Transpose the original's [out, in, ...] to [..., in, out]; a vector is unchanged."""
    return x.transpose(*range(2, x.ndim), 1, 0) if x.ndim >= 2 else x


def check(case: Any) -> float:
    """Run Muon on the case's gradients; -> largest error of a parameter after any step.

    In float32 the error is relative to the parameter's distance from the start, which is far stricter than relative to
    the parameter. In bfloat16 the rounding of the original's iteration cannot be repeated on other hardware, and its
    notes allow 0.1 * lr per element. The result is then the largest absolute error over that allowance, times 1e-4.
    """
    config = case.config
    bfloat16 = "bfloat16 cast removed" not in config["notes"]
    names = list(config["shapes"])
    params = {name: jnp.asarray(to_kernel(case.inputs[f"param.{name}"])) for name in names}
    start = params
    optimizer = muon.muon(
        config["lr"],
        weight_decay=config["weight_decay"],
        momentum=config["momentum"],
        nesterov=config["nesterov"],
        betas=tuple(config["adamw_betas"]),
        eps=config["adamw_eps"],
        steps=config["ns_steps"],
        dtype=jnp.bfloat16 if bfloat16 else jnp.float32,
    )
    state = optimizer.init(params)
    worst = 0.0
    for step in range(config["steps"]):
        grads = {name: jnp.asarray(to_kernel(case.inputs[f"grad{step}.{name}"])) for name in names}
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        for name in names:
            expected = to_kernel(case.outputs[f"step{step}.{name}"])
            error = np.asarray(params[name]) - expected
            if bfloat16:
                worst = max(worst, float(np.abs(error).max()) / (0.1 * config["lr"]) * 1e-4)
            else:
                worst = max(worst, float(np.linalg.norm(error) / np.linalg.norm(expected - np.asarray(start[name]))))
    return worst


CHECKS = {"worldplay/muon": check}
