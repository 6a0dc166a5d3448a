"""A critic that trains in turns with the model: its updates, its state in checkpoints, meshes, and bad gradients."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
import toy
from flax import nnx

from jworld.training import checkpoints, optimizers, state
from jworld.utils import errors

UPDATES = 3


class WithCritic(toy.Toy):
    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        super().__init__(width, rngs=rngs)
        self.critic = toy.linear(width, width, ("embed", "heads"), rngs)


def loss(model: Any, batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    return jnp.mean((model(batch["x"]) - model.critic(batch["x"])) ** 2), {}


def critic_loss(model: Any, batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    target = batch["scale"][:, None] * (batch["y"] + model(batch["x"]) + jax.random.normal(key, batch["x"].shape))
    return jnp.mean((model.critic(batch["x"]) - target) ** 2), {"critic_size": jnp.mean(jnp.square(target))}


def make_run(mesh: tuple[int, int, int] = (1, 1, 1)) -> toy.Run:
    return toy.Run(
        mesh=mesh,
        model=WithCritic,
        trainable=state.path_filter("(?!critic/).*"),
        loss=loss,
        critic_loss=critic_loss,
        critic={"name": "adamw", "learning_rate": 0.02, "updates": UPDATES, "skip_norm": 1e3},
        name="adamw",
        ema_decay=0.9,
    )


@pytest.fixture(scope="module")
def run() -> toy.Run:
    """A run on eight devices, which has made two steps."""
    run = make_run((2, 2, 2))
    run.step()
    run.step()
    return run


def test_every_step_updates_the_critic_several_times_before_the_model(run: toy.Run) -> None:
    """The critic's part of the same two steps on one device, written out with optax."""
    reference = make_run()
    transform = optax.adamw(0.02, weight_decay=0.0)
    critic = reference.state.critic.params
    moments = transform.init(critic)
    gradients = jax.jit(
        jax.grad(lambda critic, params, *rest: critic_loss(nnx.merge(reference.graphdef, params, critic), *rest)[0])
    )
    for number in range(2):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), number), 0x637269)
        batch, params = reference.batch(number), jax.tree.map(jnp.copy, reference.state.params)
        for update in range(UPDATES):
            gradient = gradients(critic, params, batch, jax.random.fold_in(key, update))
            updates, moments = transform.update(gradient, moments, critic)
            critic = optax.apply_updates(critic, updates)
        # The loss of the model is that after the critic's updates.
        expected = loss(nnx.merge(reference.graphdef, params, critic), batch, key)[0]
        metrics = reference.step()
        toy.assert_close(critic, reference.state.critic.params, 1e-5)
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
    assert {"critic_loss", "critic_grad_norm", "critic_size", "critic_skipped"} <= metrics.keys()
    assert reference.train_step._cache_size() == 1
    assert "critic" not in reference.state.ema
    toy.assert_close(reference.state.params, run.state.params, 1e-5)
    toy.assert_close(reference.state.critic.params, run.state.critic.params, 1e-5)


def test_a_restored_run_repeats_the_uninterrupted_one(run: toy.Run, tmp_path: pathlib.Path) -> None:
    with checkpoints.Checkpoints(tmp_path) as store:
        store.save(run.state, {})
        store.wait()
        expected = jax.tree.map(np.asarray, run.step() and run.state)
        run.state, _ = store.restore(run.abstract())
    run.count -= 1
    run.step()
    for name in ("params", "opt_state", "ema", "critic"):
        for x, y in toy.pairs(getattr(expected, name), getattr(run.state, name)):
            np.testing.assert_array_equal(x, y)


def test_a_bad_gradient_of_the_critic_changes_only_its_counter(run: toy.Run) -> None:
    before = jax.tree.map(np.asarray, run.state)
    metrics = run.step(scale=np.inf)
    assert int(metrics["critic_skipped"]) == int(before.critic.skipped) + UPDATES
    for x, y in toy.pairs(before.critic.params, run.state.critic.params):
        np.testing.assert_array_equal(x, y)
    assert any((x != y).any() for x, y in toy.pairs(before.params, run.state.params))


def test_sections_of_a_critic_are_checked() -> None:
    config = ml_collections.ConfigDict({"optimizer": {}, "critic": {"updates": 2, "learning_rate": 1.0}})
    made = optimizers.from_config(config, steps=10)
    assert made.critic_updates == 2
    assert made.critic is not None
    assert made.critic.config.learning_rate == 1.0
    for key, value in (("ema_decay", 0.9), ("accumulate", 2), ("updates", 0)):
        with pytest.raises(errors.UserError, match=f"config.critic.{key}"):
            optimizers.from_config(ml_collections.ConfigDict({"optimizer": {}, "critic": {key: value}}), steps=10)
    with pytest.raises(errors.UserError, match="has no critic"):
        toy.Run(model=WithCritic, critic={})
