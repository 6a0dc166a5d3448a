"""Train steps and held-out losses of published recipes at their width, lowered for one device without data."""

from typing import Any, NamedTuple

import jax
import ml_collections
import published_programs as programs
from flax import nnx

from jworld.parallel import axes
from jworld.planning import program as planning
from jworld.planning import recommendations
from jworld.utils import config as run_config

#: One sample of 8x8 latents on one device.
_SMALL: dict[str, Any] = {
    "data.clip.latent_size": (programs.SIDE, programs.SIDE),
    "global_batch": 1,
    "mesh.data": 1,
    "mesh.fsdp": 1,
    "mesh.sequence": 1,
    "optimizer.accumulate": 1,
}


class Lowered(NamedTuple):
    """A program before compilation, and bytes of its arrays.

    Attributes:
      program: the lowered program.
      gradients: those of all trained parameters, which a step holds once.
      stack: weights of the layers, of which no copy may be made.
    """

    program: Any
    gradients: int
    stack: int


def config(name: str, layers: int) -> ml_collections.ConfigDict:
    """Load a recipe with so many layers, half of them with control."""
    loaded = run_config.load_recipe(f"configs/{name}")
    changes = _SMALL | {"model.num_layers": layers}
    if "control_layers" in loaded.model:
        # The values of control vectors do not matter, so that their file may be absent.
        changes |= {"model.control_layers": (layers // 2, layers), "data.clip.control_states": ""}
    return recommendations.changed(loaded, changes)


def train_step(name: str, layers: int, device: jax.Device) -> Lowered:
    """Lower the train step of a recipe."""
    made = planning.Program(config(name, layers), [device])
    weights = nnx.merge_state(made.state.params, made.state.frozen)
    return Lowered(made.lower(), made.gradient_bytes(), _stack(weights))


def held_out_loss(name: str, layers: int, device: jax.Device) -> Lowered:
    """Lower the loss at one noise level, as training measures it on held-out data."""
    made = planning.Program(config(name, layers), [device])
    weights = nnx.merge_state(made.state.params, made.state.frozen)
    model = nnx.merge(made.graphdef, weights)
    with jax.set_mesh(made.mesh):
        level = jax.ShapeDtypeStruct((), "float32", sharding=axes.sharding(made.mesh, ()))
        function = jax.jit(made.system.held_out_loss)
        return Lowered(function.lower(model, made.batch, made.key, level), 0, _stack(weights))


def _stack(weights: Any) -> int:
    stacks = [leaf for path, leaf in nnx.to_flat_state(weights) if {"blocks", "layers"} & set(path)]
    return programs.size(stacks)
