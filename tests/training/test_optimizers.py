"""Schedules, the optimizer's config, Muon on stacked kernels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jworld.training import muon, optimizers
from jworld.utils import config as run_config
from jworld.utils import errors

VALUES: dict[str, list[tuple[int, float]]] = {
    "constant": [(0, 2.0), (10, 2.0), (99, 2.0)],
    "constant_with_warmup": [(0, 0.0), (5, 1.0), (10, 2.0), (99, 2.0)],
    "linear": [(0, 0.0), (10, 2.0), (55, 1.0), (100, 0.0)],
    "linear_with_min_lr": [(0, 0.0), (5, 1.0), (10, 2.0), (55, 1.1), (100, 0.2), (101, 0.2)],
    "cosine": [(5, 1.0), (10, 2.0), (55, 1.0), (100, 0.0)],
    "cosine_with_min_lr": [(10, 2.0), (55, 1.1), (100, 0.2)],
    "cosine_with_restarts": [(10, 2.0), (32, 1.0349), (55, 2.0), (99, 0.0024)],
    "polynomial": [(10, 2.0), (55, 0.5), (100, 0.0)],
}


@pytest.mark.parametrize("name", optimizers.SCHEDULES)
def test_schedules(name: str) -> None:
    config = optimizers.OptimizerConfig(
        schedule=name, learning_rate=2.0, warmup_steps=10, min_lr_ratio=0.1, num_cycles=2, power=2.0
    )
    schedule = optimizers.make_schedule(config, 100)
    for step, value in VALUES[name]:
        np.testing.assert_allclose(float(schedule(jnp.int32(step))), value, atol=1e-3)


@pytest.mark.parametrize(
    "section, message",
    [
        ({"name": "sgd"}, r"config\.optimizer\.name: found 'sgd', expected one of 'muon', 'adamw'"),
        ({"schedule": "exponential"}, r"config\.optimizer\.schedule: found 'exponential'"),
        ({"b2": 1.0}, r"config\.optimizer\.b2: found 1\.0, expected a number from 0 to below 1"),
        ({"ema_rate": 0.1, "ema_decay": 0.9}, r"config\.optimizer\.ema_decay and ema_rate are both set"),
        ({"accumulate": 0}, r"config\.optimizer\.accumulate: found 0, expected an integer from 1 to 1048576"),
        ({"learning_rate": 0.0}, r"config\.optimizer\.learning_rate: found 0\.0, expected a number above 0, up to 100"),
    ],
)
def test_a_wrong_section_is_refused(section: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        run_config.section(optimizers.OptimizerConfig, section, "optimizer")


@pytest.mark.parametrize("name", [name for name in optimizers.SCHEDULES if name != "constant"])
@pytest.mark.parametrize("steps", [5, 10])
def test_a_run_may_end_within_its_warmup(name: str, steps: int) -> None:
    schedule = optimizers.make_schedule(
        optimizers.OptimizerConfig(schedule=name, learning_rate=2.0, warmup_steps=10, num_cycles=2), steps
    )
    rates = [float(schedule(jnp.int32(step))) for step in range(steps + 1)]
    np.testing.assert_allclose(rates, 0.2 * np.arange(steps + 1), atol=1e-6)


def state(arrays: dict[str, np.ndarray], names: dict[str, tuple[str | None, ...] | None]) -> nnx.State:
    return nnx.State({k: nnx.Param(jnp.asarray(x), out_sharding=names[k]) for k, x in arrays.items()})


def test_every_layer_of_a_stack_is_updated_separately() -> None:
    rng = np.random.default_rng(0)
    kernels = rng.normal(size=(2, 3, 6, 4)).astype(np.float32)  # step, layer, in, out
    biases = rng.normal(size=(2, 3, 4)).astype(np.float32)
    tx = muon.muon(0.1, weight_decay=0.1, dtype=jnp.float32)
    names: dict[str, Any] = {"kernel": ("layer", None, None), "bias": ("layer", None)}
    with nnx.use_eager_sharding(False):
        stacked = state({"kernel": kernels[0], "bias": biases[0]}, names)
        grads = state({"kernel": kernels[1], "bias": biases[1]}, names)
        updates, _ = tx.update(grads, tx.init(stacked), stacked)
    for layer in range(3):
        params = {"kernel": kernels[0, layer], "bias": biases[0, layer]}
        gradient = {"kernel": kernels[1, layer], "bias": biases[1, layer]}
        expected, _ = tx.update(gradient, tx.init(params), params)
        for name in params:
            np.testing.assert_allclose(updates[name][...][layer], expected[name], rtol=1e-5, atol=1e-7)


def test_singular_values_of_the_update_are_near_one() -> None:
    x = jax.random.normal(jax.random.key(0), (20, 50))
    values = np.linalg.svd(np.asarray(muon.newton_schulz(x, steps=5, dtype=jnp.float32)), compute_uv=False)
    assert 0.6 < values.min() < values.max() < 1.3


def test_a_zero_gradient_only_decays() -> None:
    params = {"kernel": jnp.ones((4, 6))}
    tx = muon.muon(0.1, weight_decay=0.5)
    updates, _ = tx.update({"kernel": jnp.zeros((4, 6))}, tx.init(params), params)
    np.testing.assert_allclose(optax.apply_updates(params, updates)["kernel"], 0.95, rtol=1e-6)


def test_a_parameter_without_axes_is_named() -> None:
    params = nnx.State({"norm": nnx.State({"scale": nnx.Param(jnp.ones((2, 8)))})})
    with pytest.raises(ValueError, match="norm/scale of shape \\(2, 8\\) names no logical axes"):
        muon.muon(0.1, weight_decay=0.0).init(params)
