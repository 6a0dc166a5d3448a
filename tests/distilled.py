"""A few training steps of a small model with a teacher, on one device or a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import nnx

from jworld import systems
from jworld.parallel import axes, mesh
from jworld.training import optimizers, step
from jworld.training import state as train_state


def train(
    config: ml_collections.ConfigDict,
    batch: dict[str, Any],
    sizes: tuple[int, int, int],
    steps: int,
    *,
    between: Callable[[Any], Any] = lambda state: state,
) -> tuple[list[dict[str, float]], Any, Any]:
    """Return the metrics of every step, and the first and the last state; all parts start with the same weights.

    `between` changes the state, whose leaves are numpy arrays, after every step.
    """
    system: Any = systems.create(config)
    devices = mesh.make_mesh(
        **dict(zip(mesh.AXIS_NAMES, sizes, strict=True)), devices=jax.devices()[: int(np.prod(sizes))]
    )
    optimizer = optimizers.from_config(config, steps=10)
    trainable = train_state.path_filter(config.optimizer.trainable)
    graphdef, abstract, shardings = train_state.abstract_state(
        system.init_training, trainable=trainable, optimizer=optimizer, mesh=devices
    )
    rng = np.random.default_rng(0)
    student = {path: 0.3 * rng.standard_normal(leaf.shape) for path, leaf in nnx.to_flat_state(abstract.params)}
    everything = nnx.merge_state(abstract.params, abstract.others)
    parts = [
        (path, leaf.replace(jnp.asarray(student.get(path, student.get(path[1:])), leaf.dtype)))
        for path, leaf in nnx.to_flat_state(everything)
    ]
    divided = train_state.divide(nnx.from_flat_state(parts), trainable, optimizer)
    state = train_state.start_state(*divided, optimizer=optimizer, shardings=shardings, mesh=devices)
    # Copies, because the step writes into the memory that it is given.
    first, state = jax.tree.map(np.array, state), jax.device_put(jax.tree.map(np.array, state), shardings)
    layout = {name: axes.sharding(devices, entry.axes) for name, entry in system.batch_spec(1).items()}
    function = step.make_train_step(
        graphdef,
        system.loss,
        optimizer,
        shardings=shardings,
        batch_shardings=layout,
        mesh=devices,
        loss_takes_ema=system.loss_takes_ema,
        critic_loss=system.critic_loss,
    )
    found = []
    with jax.set_mesh(devices):
        for _ in range(steps):
            state, metrics = function(state, jax.device_put(batch, layout), jax.random.key(1))
            found.append({name: float(value) for name, value in metrics.items()})
            state = jax.device_put(between(jax.tree.map(np.array, state)), shardings)
    return found, first, jax.tree.map(np.array, state)


def other_critic(state: Any) -> Any:
    """Return the state with other weights of the critic than it trained; see `between` of `train`."""
    return state.replace(critic=state.critic.replace(params=jax.tree.map(lambda x: 0.9 * x, state.critic.params)))


def check_perfect_critic(metrics: list[dict[str, float]], first: Any, last: Any) -> None:
    """Check the result of `train` with `other_critic`, and a critic that starts as the teacher and stays it.

    Its first step has no gradient, the second one does, and only the student's weights change.
    """
    assert metrics[0]["loss"] < 1e-10
    assert metrics[0]["grad_norm"] < 1e-4
    assert metrics[1]["loss"] > 1e-6
    for part, same in (("frozen", True), ("params", False)):
        pairs = zip(*(jax.tree.leaves(getattr(state, part)) for state in (first, last)), strict=True)
        assert all((x == y).all() for x, y in pairs) == same


def check_same_steps(
    one: list[dict[str, float]], eight: list[dict[str, float]], *, least: float, tolerance: float
) -> None:
    """Check that all metrics of a student and its critic are equal, and in the first step at least `least`."""
    for name in ("loss", "score_distance", "grad_norm", "critic_loss", "critic_grad_norm"):
        assert one[0][name] > least
        np.testing.assert_allclose([x[name] for x in eight], [x[name] for x in one], rtol=tolerance, err_msg=name)
