"""One loss with its gradient on one device and on a mesh, for tests that compare them."""

from typing import Any

import jax
from flax import nnx

from jworld.parallel import axes

Step = tuple[jax.Array, nnx.State]


def loss_and_gradient(
    system: Any, model: nnx.Module, batch: dict[str, jax.Array], devices: jax.sharding.Mesh
) -> tuple[Step, Step]:
    """Return (loss, gradient) of one device, and those with weights and batch split over the mesh `devices`."""
    graphdef, params = nnx.split(model)

    def step(params: nnx.State, batch: dict[str, jax.Array]) -> Step:
        return jax.value_and_grad(lambda p: system.loss(nnx.merge(graphdef, p), batch, jax.random.key(0))[0])(params)

    expected = jax.jit(step)(params, batch)
    with jax.set_mesh(devices), nnx.logical_axis_rules(axes.RULES):
        placed = jax.device_put(params, nnx.get_named_sharding(params, devices))
        spec = system.batch_spec(len(next(iter(batch.values()))))
        split = {name: jax.device_put(x, axes.sharding(devices, spec[name].axes)) for name, x in batch.items()}
        return expected, jax.jit(step)(placed, split)
