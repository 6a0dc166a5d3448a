"""Parity of the optimizers with the original systems' updates."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from jworld.training import muon


def to_kernel(x: np.ndarray) -> np.ndarray:
    """The original's [out, in, ...] as [..., in, out]; a vector stays."""
    return x.transpose(*range(2, x.ndim), 1, 0) if x.ndim >= 2 else x


def check(case: Any) -> float:
    """Muon from the case's gradients: largest error of a parameter after any step.

    float32: relative to the norm of the distance that the parameter has moved since the start, which is far
    stricter than relative to the parameter. bfloat16: the rounding of the original's iteration cannot be
    repeated on other hardware and its notes allow 0.1 * lr per element, so the largest absolute error over
    that allowance, times 1e-4: it passes below 1e-4 exactly if every element is within the allowance.
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
