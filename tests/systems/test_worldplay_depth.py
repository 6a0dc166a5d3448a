"""The program of a training step does not grow with the number of layers, so neither does its compilation."""

import pathlib

import jax
from flax import nnx

from jworld import systems
from jworld.parallel import axes, mesh
from jworld.training import optimizers, state, step
from jworld.utils import config as run_config

RECIPE = str(pathlib.Path(__file__).parents[2] / "configs" / "ar_mem.py")


def lines(layers: int) -> int:
    """Count the lines of the lowered train step with optimizer and EMA, without compiling it."""
    config = run_config.load_recipe(RECIPE)
    with config.unlocked():
        config.model.update({"num_layers": layers, "remat": "attention"})
    system = systems.create(config)
    devices = mesh.make_mesh(devices=jax.devices()[:1])
    optimizer = optimizers.make_optimizer(
        run_config.section(optimizers.OptimizerConfig, config.optimizer, "optimizer"), steps=config.steps
    )
    graphdef, abstract, shardings = state.abstract_state(
        system.init, trainable=nnx.Param, optimizer=optimizer, mesh=devices
    )
    spec = system.batch_spec(config.global_batch)
    batch = {name: jax.ShapeDtypeStruct(entry.shape, entry.dtype) for name, entry in spec.items()}
    train_step = step.make_train_step(
        graphdef,
        system.loss,
        optimizer,
        shardings=shardings,
        batch_shardings={name: axes.sharding(devices, entry.axes) for name, entry in spec.items()},
        mesh=devices,
    )
    with jax.set_mesh(devices):
        return train_step.lower(abstract, batch, jax.random.key(0)).as_text().count("\n")


def test_the_train_step_is_as_long_for_8_layers_as_for_2() -> None:
    two = lines(2)
    assert two > 1000
    assert lines(8) == two
