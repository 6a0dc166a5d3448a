"""Train step of a config on given devices, described without allocating weights."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_collections
from flax import nnx

from jworld import systems
from jworld.parallel import axes, mesh
from jworld.training import optimizers, step
from jworld.training import state as train_state


class Program:
    """Program that `jworld.train` would run, with nothing allocated.

    Attributes:
      system, optimizer, mesh: built from the config.
      state: the train state as ShapeDtypeStructs with their sharding.
      batch: one global batch, likewise.
      function: the compiled step of `training.step`.

    Raises:
      UserError: the config is inconsistent or does not fit the devices.
    """

    def __init__(self, config: ml_collections.ConfigDict, devices: Sequence[jax.Device]):
        self.config = config
        self.system = systems.create(config)
        self.mesh = mesh.make_mesh(**config.mesh, devices=devices)
        self.optimizer = optimizers.from_config(config, steps=max(config.steps, 1))
        mesh.check_batch(self.mesh, config.global_batch, self.optimizer.config.accumulate)
        self.trainable = train_state.path_filter(self.optimizer.config.trainable)
        self.graphdef, self.state, self.shardings = train_state.abstract_state(
            self.system.init_training, trainable=self.trainable, optimizer=self.optimizer, mesh=self.mesh
        )
        spec = self.system.batch_spec(config.global_batch)
        self.batch_shardings = {name: axes.sharding(self.mesh, entry.axes) for name, entry in spec.items()}
        self.batch = {
            name: jax.ShapeDtypeStruct(entry.shape, entry.dtype, sharding=self.batch_shardings[name])
            for name, entry in spec.items()
        }
        self.key = jax.eval_shape(lambda: jax.random.key(0))
        self.function: Any = step.make_train_step(
            self.graphdef,
            self.system.loss,
            self.optimizer,
            shardings=self.shardings,
            batch_shardings=self.batch_shardings,
            mesh=self.mesh,
            loss_takes_ema=self.system.loss_takes_ema,
            critic_loss=self.system.critic_loss,
        )

    def lower(self) -> Any:
        """Lower the step for the compiler."""
        with jax.set_mesh(self.mesh):
            return self.function.lower(self.state, self.batch, self.key)

    def jaxpr(self) -> Any:
        """Trace the step with JAX, before any compilation."""
        with jax.set_mesh(self.mesh):
            return self.function.trace(self.state, self.batch, self.key).jaxpr

    def lower_start(self) -> Any:
        """Lower the program that draws the initial state; None if all weights come from other runs."""
        if self.config.init_from or self.system.parts:
            return None
        function = train_state.initial_program(
            self.system.init_training, trainable=self.trainable, optimizer=self.optimizer, shardings=self.shardings
        )
        with jax.set_mesh(self.mesh), nnx.logical_axis_rules(axes.RULES):
            return function.lower(self.key)

    def restore_bytes(self) -> int:
        """Return the bytes on each device while a state is restored: the state, and its largest array once more."""
        sizes = list(shard_sizes(self.state))
        return sum(sizes) + max(sizes)

    def shard_bytes(self) -> dict[str, int]:
        """Return the bytes on each device of the parts that persist between steps, and of the batch."""
        parts = {
            "parameters": (self.state.params, self.state.others),
            "optimizer": (self.state.opt_state, self.state.critic and self.state.critic.opt_state),
            "ema": self.state.ema,
            "batch": self.batch,
        }
        return {name: sum(shard_sizes(tree)) for name, tree in parts.items()}

    def gradient_bytes(self) -> int:
        """Return the bytes on each device of the gradients of all trained parameters.

        Those of the critic are computed before those of the model.
        """
        critic = self.state.critic
        return max(sum(shard_sizes(tree)) for tree in (self.state.params, critic and critic.params))


def shard_sizes(tree: Any) -> Iterator[int]:
    """Yield the bytes that each device has of every array, which are described with their sharding."""
    for leaf in jax.tree.leaves(tree):
        yield math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
