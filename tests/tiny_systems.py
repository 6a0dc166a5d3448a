"""Models and batches of small systems, for their tests."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


def make_model(system: Any, *, scale: float = 0.2) -> Any:
    """Make the system's network without zero weights: zero modulations would hide times, actions and control."""
    with nnx.use_eager_sharding(False):
        graphdef, params = nnx.split(nnx.eval_shape(lambda: system.init(nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: jnp.asarray(scale * rng.standard_normal(x.shape), x.dtype), params)
    return nnx.merge(graphdef, drawn)


def make_batch(system: Any, rows: int) -> dict[str, jax.Array]:
    """Draw random numbers in the shapes that the system trains on."""
    rng = np.random.default_rng(1)
    return {
        name: jnp.asarray(rng.standard_normal(spec.shape), spec.dtype) for name, spec in system.batch_spec(rows).items()
    }
