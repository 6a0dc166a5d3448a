"""WorldPlay: loss, random numbers, training on meshes, refused configs."""

import copy
import fractions
import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import tiny_run
from flax import nnx

from jworld import systems
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.hunyuan.transformer import HunyuanTransformer
from jworld.parallel import axes, mesh
from jworld.systems.worldplay import objective
from jworld.systems.worldplay.system import WorldPlay
from jworld.training import optimizers, state, step
from jworld.utils import config as run_config
from jworld.utils import errors

BATCH, CHUNK = 8, 4

Batch = dict[str, np.ndarray]


def make_config() -> ml_collections.ConfigDict:
    """Make a config with windows of two chunks of 2x2 latents, and two layers of width 32."""
    config = copy.deepcopy(tiny_run.make_config(pathlib.Path("unused")))
    with config.unlocked():
        config.global_batch = BATCH
        config.model.channels = 4
        config.model.text_dim = 6
        config.model.vision_dim = 5
        config.data.clip.update(
            {
                "latent_size": (2, 2),
                "window_frames": 2 * CHUNK,
                "memory_frames": CHUNK,
                "temporal_context": 0,
                "text_tokens": 4,
                "vision_tokens": 3,
            }
        )
        config.optimizer.update({"learning_rate": 2e-3, "warmup_steps": 0, "newton_schulz_dtype": "float32"})
    return config


@functools.cache
def system() -> WorldPlay:
    return systems.create(make_config())


def randomized(params: Any) -> Any:
    """Add noise to all weights, because zero gates would hide the blocks."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: jax.device_put(np.asarray(x) + 0.1 * rng.normal(size=x.shape).astype(np.float32), x.sharding), params
    )


@functools.cache
def split_model() -> tuple[nnx.GraphDef, nnx.State]:
    with nnx.use_eager_sharding(False):
        graphdef, params = nnx.split(system().init(nnx.Rngs(0)))
    return graphdef, randomized(params)


def make_batch(seed: int) -> Batch:
    """Make random values in the shapes of `batch_spec`; every second sample is a memory sample."""
    rng = np.random.default_rng(seed)
    batch = {}
    for name, entry in system().batch_spec(BATCH).items():
        value = rng.normal(size=entry.shape)
        if name == "w2c":
            poses = np.tile(np.eye(4), (*entry.shape[:2], 1, 1))
            poses[..., :3, 3] = 0.2 * value[..., :3, 3]
            value = poses
        elif name == "intrinsics":
            value = np.tile(np.diag([0.5, 0.9, 1.0]), (*entry.shape[:2], 1, 1))
        elif name == "action":
            value = rng.integers(0, 81, entry.shape)
        elif name == "is_memory":
            value = np.arange(BATCH) % 2 == 0
        elif name == "text_mask":
            value = np.arange(entry.shape[1]) < rng.integers(1, entry.shape[1] + 1, (BATCH, 1))
        batch[name] = value.astype(entry.dtype)
    return batch


# The loss


@jax.jit
def loss_of(params: nnx.State, batch: objective.Batch, draws: objective.Draws) -> jax.Array:
    model = nnx.merge(split_model()[0], params)
    return objective.loss(model, batch, draws, chunk_frames=CHUNK, shift=3.0)[0]


def pair(seed: int = 0) -> tuple[Batch, objective.Draws]:
    """Make a memory sample and a window sample, with float32 latents, and their draws."""
    batch = {name: value[:2] for name, value in make_batch(seed).items()}
    batch["latent"] = batch["latent"].astype(np.float32)
    draws = objective.draw(jax.random.key(seed), batch["latent"].shape, CHUNK, objective.ObjectiveConfig())
    return batch, draws


def only(row: int, batch: Batch, draws: objective.Draws) -> tuple[Batch, objective.Draws]:
    """Return one sample twice, so that the mean is its loss."""
    return jax.tree.map(lambda x: np.stack([x[row]] * 2), (batch, draws))


def test_loss_is_the_mean_over_samples() -> None:
    params = split_model()[1]
    batch, draws = pair()
    singles = [float(loss_of(params, *only(row, batch, draws))) for row in range(2)]
    np.testing.assert_allclose(loss_of(params, batch, draws), np.mean(singles), rtol=1e-6)
    assert abs(singles[0] - singles[1]) > 1e-3


def test_memory_samples_count_the_last_chunk_only() -> None:
    """Clean + sigma * d and noise - (1 - sigma) * d have the same noisy input and another target."""
    params = split_model()[1]
    batch, draws = pair()
    times = objective.chunk_timesteps(draws, jnp.asarray(batch["is_memory"]), 3.0)
    sigma = np.repeat(np.asarray(times), CHUNK, axis=1)[..., None, None, None] / 1000
    rng = np.random.default_rng(3)

    def change(frames: slice) -> list[float]:
        """Return the change in each sample's loss with the target of `frames`."""
        d = np.zeros_like(batch["latent"])
        d[:, frames] = rng.normal(size=d[:, frames].shape)
        moved = batch | {"latent": batch["latent"] + sigma * d}
        moved_draws = draws._replace(noise=draws.noise - (1 - sigma) * d)
        return [
            abs(float(loss_of(params, *only(row, moved, moved_draws)) - loss_of(params, *only(row, batch, draws))))
            for row in range(2)
        ]

    memory, window = change(slice(0, CHUNK))
    assert memory < 1e-4
    assert window > 1e-2
    assert min(change(slice(CHUNK, None))) > 1e-2


def test_context_of_a_window_counts_for_nothing_but_as_context() -> None:
    """The target of the chunks before the random one has no part in the loss, their latents have."""
    params = split_model()[1]
    batch, draws = only(1, *pair())
    count = draws.u.shape[1]
    draws = draws._replace(context=np.full(2, count - 1))
    as_memory = batch | {"is_memory": np.ones(2, bool)}
    plain = loss_of(params, batch, draws)
    np.testing.assert_allclose(plain, loss_of(params, as_memory, draws._replace(context=None)), rtol=1e-6)
    assert abs(plain - loss_of(params, batch, draws._replace(context=np.zeros(2, int)))) > 1e-3
    np.testing.assert_array_equal(objective.in_context(draws, batch["is_memory"]).sum(axis=1), [count - 1] * 2)


def test_own_errors_replace_the_context_and_nothing_else() -> None:
    params = split_model()[1]
    batch, draws = pair()
    plain = [float(loss_of(params, *only(row, batch, draws))) for row in range(2)]
    none, own = (draws._replace(own=np.full(2, value)) for value in (False, True))
    for row in range(2):
        np.testing.assert_allclose(loss_of(params, *only(row, batch, none)), plain[row], rtol=1e-6)
    memory, window = (float(loss_of(params, *only(row, batch, own))) for row in range(2))
    assert abs(memory - plain[0]) > 1e-3
    np.testing.assert_allclose(window, plain[1], rtol=1e-6)
    # What the model predicts of frames without noise is these frames: nothing changes.
    clear = own._replace(u=np.concatenate([np.zeros_like(draws.u[:, :-1]), draws.u[:, -1:]], axis=1))
    same = float(loss_of(params, *only(0, batch, clear)))
    assert abs(same - plain[0]) < 0.1 * abs(memory - plain[0])


def test_errors_at_low_noise_count_less_below_the_floor() -> None:
    """The chunk of a memory sample that counts has one noise level, by which its loss is weighted."""
    batch, draws = only(0, *pair())
    sigma = float(objective.chunk_timesteps(draws, batch["is_memory"], 3.0)[0, -1]) / 1000

    @functools.partial(jax.jit, static_argnums=3)
    def value(params: nnx.State, batch: objective.Batch, draws: objective.Draws, floor: float) -> jax.Array:
        model = nnx.merge(split_model()[0], params)
        return objective.predict(model, batch, draws, chunk_frames=CHUNK, shift=3.0, sigma_floor=floor)[0]

    arguments = (split_model()[1], batch, draws)
    plain = value(*arguments, 0.0)
    assert 0.1 < sigma < 0.95
    np.testing.assert_allclose(value(*arguments, 0.9 * sigma), plain, rtol=1e-6)
    np.testing.assert_allclose(value(*arguments, 1.0), plain * sigma**2, rtol=1e-5)


def test_shares_of_samples_with_clean_context_and_own_errors() -> None:
    cfg = objective.ObjectiveConfig(clean_context=0.75, own_errors=0.25)
    draws = objective.draw(jax.random.key(0), (4000, 4 * CHUNK, 1, 1, 1), CHUNK, cfg)
    assert draws.context is not None
    assert draws.own is not None
    shares = np.bincount(draws.context, minlength=4) / 4000
    np.testing.assert_allclose(shares, [0.25] * 4, atol=0.03)
    assert abs(np.mean(draws.own) - 0.25) < 0.03
    published = objective.draw(jax.random.key(0), (4, 4 * CHUNK, 1, 1, 1), CHUNK, objective.ObjectiveConfig())
    assert published.context is None
    assert published.own is None
    np.testing.assert_array_equal(
        published.noise, objective.draw(jax.random.key(0), (4, 4 * CHUNK, 1, 1, 1), CHUNK, cfg).noise
    )
    with pytest.raises(ValueError, match=r"own_errors: found 1\.5, expected a number from 0 to 1"):
        objective.ObjectiveConfig(own_errors=1.5)


# Times and draws


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_sampled_times_are_the_rounded_up_shift_of_every_thousandth(shift: float) -> None:
    s = fractions.Fraction(shift)
    shares = [fractions.Fraction(k, 1000) for k in range(1000)]
    expected = [max(math.ceil(1000 * s * x / (1 + (s - 1) * x)), 1) for x in shares]
    u = (np.arange(1000)[:, None] + 0.5) / 1000
    draws = objective.Draws(jnp.asarray(u), jnp.zeros((1000, 1), int), jnp.zeros(()))
    times = objective.chunk_timesteps(draws, jnp.zeros(1000, bool), shift)
    np.testing.assert_array_equal(times[:, 0], expected)


def test_times_at_the_edges_and_of_memory() -> None:
    u = jnp.array([[0.0, 0.0009, 0.5, 0.99999]] * 2)
    draws = objective.Draws(u, jnp.array([[16, 500, 77, 88]] * 2), jnp.zeros(()))
    times = objective.chunk_timesteps(draws, jnp.array([False, True]), shift=3.0)
    np.testing.assert_array_equal(times, [[1, 1, 750, 1000], [16, 500, 77, 1000]])


def test_draws_depend_on_the_key_and_stay_in_range() -> None:
    cfg = objective.ObjectiveConfig(memory_times=(16, 20))
    shape = (64, 2 * CHUNK, 2, 2, 3)
    first, again, other = (objective.draw(jax.random.key(seed), shape, CHUNK, cfg) for seed in (0, 0, 1))
    for a, b, c in zip(first[:3], again[:3], other[:3], strict=True):
        np.testing.assert_array_equal(a, b)
        assert np.mean(np.asarray(a) == np.asarray(c)) < 0.5
    assert set(np.unique(first.memory_times)) == {16, 17, 18, 19, 20}
    assert first.u.shape == first.memory_times.shape == (64, 2)
    assert np.unique(first.u).size == 128
    noise = np.asarray(first.noise)
    assert noise.shape == shape
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05


@pytest.mark.parametrize("weighting", ["logit_normal", "mode", "uniform"])
def test_no_key_serves_two_draws(weighting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []

    def recording(draw: Any) -> Any:
        def recorded(key: jax.Array, *args: Any, **options: Any) -> jax.Array:
            keys.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
            return draw(key, *args, **options)

        return recorded

    for name in ("normal", "uniform", "randint"):
        monkeypatch.setattr(jax.random, name, recording(getattr(jax.random, name)))
    key = jax.random.key(0)
    objective.draw(key, (2, 2 * CHUNK, 1, 1, 1), CHUNK, objective.ObjectiveConfig(weighting=weighting))
    assert len(keys) >= 3
    assert len(set(keys)) == len(keys)
    assert tuple(np.asarray(jax.random.key_data(key)).tolist()) not in keys


# Training on meshes


@functools.cache
def trained(sizes: tuple[int, int, int]) -> tuple[nnx.State, nnx.State]:
    """Train for five steps; return the parameters before and after."""
    data, fsdp, sequence = sizes
    count = data * fsdp * sequence
    devices = mesh.make_mesh(data=data, fsdp=fsdp, sequence=sequence, devices=jax.devices()[:count])
    config = make_config()
    optimizer = optimizers.make_optimizer(
        run_config.section(optimizers.OptimizerConfig, config.optimizer, "optimizer"), steps=config.steps
    )
    graphdef, run, shardings = state.create_state(
        system().init, trainable=nnx.Param, optimizer=optimizer, key=jax.random.key(0), mesh=devices
    )
    run = state.start_state(randomized(run.params), run.frozen, optimizer=optimizer, shardings=shardings, mesh=devices)
    batch_shardings = {name: axes.sharding(devices, x.axes) for name, x in system().batch_spec(BATCH).items()}
    train_step = step.make_train_step(
        graphdef, system().loss, optimizer, shardings=shardings, batch_shardings=batch_shardings, mesh=devices
    )
    key, before = jax.random.key(1), jax.tree.map(np.asarray, run.params)
    with jax.set_mesh(devices):
        arguments = (run, jax.device_put(make_batch(0), batch_shardings), key)
        compiled = train_step.lower(*arguments).compile()
        for number in range(5):
            run, metrics = compiled(run, jax.device_put(make_batch(number), batch_shardings), key)
            assert np.isfinite(metrics["loss"])
            assert not metrics["skipped"]
    return before, jax.tree.map(np.asarray, run.params)


@pytest.mark.parametrize(
    "sizes",
    [(2, 2, 2), *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in [(1, 8, 1), (1, 2, 4)])],
)
def test_a_mesh_trains_like_one_device(sizes: tuple[int, int, int]) -> None:
    before, expected = trained((1, 1, 1))
    _, actual = trained(sizes)
    for start, a, b in zip(*map(jax.tree.leaves, (before, actual, expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=0)
        assert np.abs(b - start).max() > 1e-4


# Refused configs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"remat": "some"}, "remat is 'some', must be one of none, attention, full"),
        ({"width": 100}, "width 100 is not a multiple of num_heads 16"),
        ({"rope_dims": (16, 56, 58)}, "sum to the head size 128"),
        ({"rope_dims": (15, 57, 56)}, "must be even"),
        ({"width": 32, "rope_dims": (2, 0, 0)}, "head size 2 must be a multiple of 4"),
        ({"patch_size": (2, 1, 1)}, "must have 1 in time"),
    ],
)
def test_invalid_model_configs(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HunyuanConfig(**changes)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.wdith", 3, "config.model.wdith: unknown key"),
        ("model.width", "wide", "config.model.width: found 'wide', expected an integer"),
        ("model.width", 33, "config.model: width 33 is not a multiple of num_heads 2"),
        ("model.remat", "some", "config.model: remat is 'some'"),
        ("data.clip.window_frames", 9, "window_frames is 9, expected a multiple of chunk_frames 4"),
        ("data.clip.glyph_tokens", 8, "config.data.clip.glyph_tokens is 8 but config.model.glyph_dim is None"),
        ("model.patch_size", (1, 2, 3), "config.data.clip.latent_size"),
        ("mesh.sequence", 3, "config.mesh.sequence is 3, which does not divide config.data.clip.window_frames 8"),
        (
            "loss.weighting",
            "flat",
            "config.loss.weighting: found 'flat', expected one of 'logit_normal', 'mode', 'uniform'",
        ),
        ("loss.memory_times", (500, 16), "memory_times"),
        ("sample.rollout.num_steps", 0, "num_steps: found 0"),
        ("data.clip.chunk_frames", 0, "chunk_frames: found 0"),
        ("data.clip.memory_frames", 6, "memory_frames is 6"),
        ("data.clip.temporal_context", 4, "temporal_context is 4"),
        ("data.clip.text_dropout", 3.0, "text_dropout: found 3.0"),
        ("data.clip.memory_points", 0, "memory_points: found 0"),
        ("data.clip.memory_fov", (60.0, 180.0), r"memory_fov: found \(60.0, 180.0\)"),
        ("data.clip.memory_radius", 0.0, "memory_radius: found 0.0"),
    ],
)
def test_invalid_configs(key: str, value: Any, message: str) -> None:
    config = make_config()
    *path, name = key.split(".")
    with config.unlocked():
        node = functools.reduce(lambda node, part: node[part], path, config)
        if name in node:
            del node[name]
        node[name] = value
    with pytest.raises(errors.UserError, match=message):
        systems.create(config)


def test_a_mesh_that_splits_no_chunk_is_refused() -> None:
    """The number of heads does not matter: two heads run on four devices."""
    system().check_sampling(mesh.make_mesh(fsdp=2, sequence=4))
    with pytest.raises(errors.UserError, match="sequence=8, which does not divide the 4 latent frames"):
        system().check_sampling(mesh.make_mesh(sequence=8))


def test_the_model_is_built_as_configured() -> None:
    params = split_model()[1]
    assert isinstance(nnx.merge(*split_model()), HunyuanTransformer)
    assert params["blocks"]["image"]["query"]["kernel"].shape == (2, 32, 32)
    assert set(system().batch_spec(BATCH)) == set(make_batch(0))
