"""The train step on a toy network of two stacked layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from flax import nnx

from jworld.training import optimizers, state, step
from jworld.utils import errors


@pytest.mark.parametrize("name", optimizers.NAMES)
def test_ten_steps_compile_once_and_learn(name: str) -> None:
    run = toy.Run(name=name, learning_rate=0.02)
    losses = [float(run.step()["loss"]) for _ in range(10)]
    assert losses[-1] < 0.9 * losses[0]
    assert run.train_step._cache_size() == 1
    assert int(run.state.step) == 10


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 8, 1), (2, 2, 2)])
def test_mesh_does_not_change_the_parameters(sizes: tuple[int, int, int]) -> None:
    options: dict[str, Any] = {"name": "muon", "clip_norm": 1.0, "newton_schulz_dtype": "float32"}
    one, many = toy.Run(mesh=(1, 1, 1), **options), toy.Run(mesh=sizes, **options)
    for _ in range(5):
        one.step()
        many.step()
    toy.assert_close(one.state.params, many.state.params, 1e-5)


def test_moments_are_sharded_like_their_parameters() -> None:
    run = toy.Run(name="muon", mesh=(1, 8, 1))
    kernel = run.state.params["blocks"]["up"]["kernel"]
    assert kernel.get_raw_value().addressable_shards[0].data.shape == (2, toy.WIDTH // 8, toy.HIDDEN)
    sizes = [x.addressable_shards[0].data.size for x in jax.tree.leaves(run.state.opt_state) if x.ndim == 3]
    assert sizes == [kernel.get_raw_value().size // 8] * 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_a_bad_gradient_changes_only_the_counters(bad: float) -> None:
    run = toy.Run(name="muon", skip_norm=10.0, ema_decay=0.9)
    run.step()
    before = jax.tree.map(np.asarray, run.state)
    metrics = run.step(scale=bad)
    after = jax.tree.map(np.asarray, run.state)
    for name in ("params", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(after, name))
    assert (after.step, after.skipped, after.skipped_in_row) == (2, 1, 1)
    assert int(metrics["skipped"]) == 1
    run.step(scale=bad)
    assert int(run.state.skipped_in_row) == 2
    run.step()
    assert (int(run.state.step), int(run.state.skipped), int(run.state.skipped_in_row)) == (4, 2, 0)


def test_a_loss_that_is_not_finite_skips_despite_a_finite_gradient() -> None:
    def loss(model: nnx.Module, batch: Any, key: jax.Array) -> Any:
        value, metrics = toy.loss(model, batch, key)
        return value + jnp.where(batch["scale"][0] > 1, jnp.nan, 0.0), metrics

    run = toy.Run(loss=loss)
    before = jax.tree.map(np.asarray, run.state.params)
    metrics = run.step(scale=2.0)
    assert np.isnan(metrics["loss"])
    assert np.isfinite(metrics["grad_norm"])
    assert int(metrics["skipped_in_row"]) == 1
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, run.state.params))


def test_accumulation_equals_the_large_batch() -> None:
    runs = [toy.Run(name="adamw", accumulate=count, clip_norm=1.0, mesh=(2, 2, 2)) for count in (1, 2)]
    for _ in range(3):
        losses = [float(run.step()["loss"]) for run in runs]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    toy.assert_close(runs[0].state.params, runs[1].state.params, 1e-5)


def test_accumulation_of_a_mean_over_unequal_parts() -> None:
    """The loss is a mean over terms, such as tokens, whose number differs between microbatches."""

    def loss(model: nnx.Module, batch: Any, key: jax.Array) -> Any:
        # The rows 0, 2, ... are one microbatch, the rows 1, 3, ... the other.
        counted = (jnp.sum(batch["x"], axis=1) > 1).astype(jnp.float32)
        errors = jnp.mean((model(batch["x"]) - batch["y"]) ** 2, axis=1)
        return jnp.sum(counted * errors) / jnp.sum(counted), {step.WEIGHT: jnp.sum(counted)}

    runs = [toy.Run(name="adamw", accumulate=count, loss=loss) for count in (1, 2)]
    metrics = [run.step() for run in runs]
    np.testing.assert_allclose(metrics[0]["loss"], metrics[1]["loss"], rtol=1e-5)
    np.testing.assert_allclose(metrics[0]["grad_norm"], metrics[1]["grad_norm"], rtol=1e-5)
    assert step.WEIGHT not in metrics[1]


def test_accumulation_that_does_not_divide_is_refused() -> None:
    with pytest.raises(errors.UserError, match=r"config\.optimizer\.accumulate is 3"):
        toy.Run(accumulate=3).step()


def test_microbatches_draw_different_noise() -> None:
    def loss(model: nnx.Module, batch: Any, key: jax.Array) -> Any:
        value, _ = toy.loss(model, batch, key)
        noise = jax.random.uniform(key)
        return value, {"noise": noise, "noise_squared": noise**2}

    metrics = toy.Run(accumulate=2, loss=loss).step()
    assert float(metrics["noise_squared"]) > float(metrics["noise"]) ** 2 + 1e-6


def test_ema_follows_the_parameters() -> None:
    run = toy.Run(ema_decay=0.15)
    expected = jax.tree.map(np.asarray, run.state.params)
    for decay in (1 / 10, 0.15, 0.15):  # the first is still the warm-up, (1 + n) / (10 + n)
        run.step()
        expected = jax.tree.map(lambda e, p, d=decay: d * e + (1 - d) * np.asarray(p), expected, run.state.params)
    toy.assert_close(expected, run.state.ema, 1e-6)


def test_clipping_bounds_the_update() -> None:
    run = toy.Run(clip_norm=1e-3, name="adamw", b1=0.0, b2=0.0, eps=1.0)
    before = jax.tree.map(np.asarray, run.state.params)
    metrics = run.step()
    assert float(metrics["grad_norm"]) > 1e-2
    change = np.sqrt(sum(np.sum((np.asarray(a) - b) ** 2) for a, b in toy.pairs(run.state.params, before)))
    np.testing.assert_allclose(change, 1e-3 * run.optimizer.config.learning_rate, rtol=1e-2)


def test_frozen_parameters_stay() -> None:
    run = toy.Run(trainable=nnx.All(nnx.Param, nnx.PathContains("blocks")))
    assert set(run.state.params) == {"blocks"}
    sizes = state.sizes(run.state.params, run.state.frozen)
    both = 2 * (2 * toy.WIDTH * toy.HIDDEN + toy.HIDDEN + toy.WIDTH)
    assert sizes == {"blocks": (both, both), "head": (0, toy.WIDTH * (toy.WIDTH + 1))}
    frozen = jax.tree.map(np.asarray, run.state.frozen)
    run.step()
    jax.tree.map(np.testing.assert_array_equal, frozen, jax.tree.map(np.asarray, run.state.frozen))


def test_given_weights_also_initialize_the_ema() -> None:
    run = toy.Run(ema_decay=0.5)
    other = jax.tree.map(lambda x: x + 1, run.state.params)
    run.state = state.start_state(
        other, run.state.frozen, optimizer=run.optimizer, shardings=run.shardings, mesh=run.mesh
    )
    run.step()
    toy.assert_close(run.state.ema, run.state.params, 0.1)


def test_only_missing_weights_are_drawn() -> None:
    """They are those of a start without given weights, in their place on the mesh."""
    run = toy.Run(mesh=(1, 2, 1))
    params = run.abstract().params
    given, missing = nnx.split_state(params, nnx.PathContains("blocks"), ...)
    given = jax.tree.map(lambda x: jax.device_put(jnp.full(x.shape, 7.0, x.dtype), x.sharding), given)
    key = jax.random.key(0)
    found = state.draw_missing(run.init["init_model"], nnx.merge_state(given, missing), key=key, mesh=run.mesh)
    toy.assert_close(found["head"], run.state.params["head"], 0)
    assert all((leaf == 7).all() for leaf in jax.tree.leaves(found["blocks"]))
    placed = jax.tree.map(lambda x, y: x.sharding == y.sharding, found, params)
    assert all(jax.tree.leaves(placed))


def test_a_dimension_that_the_mesh_does_not_divide_is_named() -> None:
    with pytest.raises(errors.UserError, match=r"config\.mesh\.fsdp is 8, but params/.* of shape .*12"):
        toy.Run(mesh=(1, 8, 1), width=12)
    # Each of the two axes divides it, their product does not.
    with pytest.raises(errors.UserError, match=r"config\.mesh\.fsdp x config\.mesh\.sequence is 8, but params/.*12"):
        toy.Run(mesh=(1, 4, 2), width=12)


def test_leaf_names_keep_a_layer_called_value() -> None:
    tree = {"value": nnx.State({"kernel": nnx.Param(jnp.ones(2))}), "rest": [jnp.ones(1)]}
    names = [state.leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert names == ["rest/0", "value/kernel"]


def test_learning_rate_counts_updates_not_steps() -> None:
    run = toy.Run(schedule="linear", steps=10, learning_rate=1.0, skip_norm=1e3)
    run.step(scale=np.nan)
    rates = [float(run.step()["learning_rate"]) for _ in range(2)]
    np.testing.assert_allclose(rates, [1.0, 0.9], rtol=1e-6)


def test_the_noise_depends_only_on_the_step() -> None:
    def loss(model: nnx.Module, batch: Any, key: jax.Array) -> Any:
        return toy.loss(model, batch, key)[0], {"draw": jax.random.uniform(key)}

    draws = []
    for _ in range(2):
        run = toy.Run(loss=loss)
        draws.append([float(run.step()["draw"]) for _ in range(3)])
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == 3
