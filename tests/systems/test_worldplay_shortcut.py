"""Shortcut training of WorldPlay: oracles, the loss in numpy, sizes of steps in sampling, meshes."""

import dataclasses
import functools
import types
from typing import Any

import distilled
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_examples
from flax import nnx

from jworld import systems
from jworld.diffusion import flow_matching
from jworld.evaluation.held_out import Controls
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import HunyuanTransformer
from jworld.systems.worldplay import distillation, latents, shortcut
from jworld.systems.worldplay.autoregressive import AutoregressiveSession
from jworld.utils import errors

make_config = functools.partial(rollout_examples.small, "ar_distill.py:shortcut")
CHUNK = 4
SETTINGS = shortcut.ShortcutConfig(finest=8, consistent=4, shift=3.0, sigma_floor=0.4)
SHAPE = (8, 16, 2, 2, 4)


class Network:
    """A stand-in for a network, whose velocity is a function of the noisy chunk, its times, and the sizes of steps."""

    def __init__(self, function: Any) -> None:
        self.function, self.cfg = function, types.SimpleNamespace(references=False)

    def __call__(self, frames: Any, *_: Any, context_frames: int, **__: Any) -> jax.Array:
        own = frames.video[:, context_frames:, ..., :4]
        time, size = (x[:, context_frames:, None, None, None] for x in (frames.timestep, frames.step_size))
        assert frames.step_size.shape == frames.timestep.shape
        velocity = self.function(own, time, size)
        return jnp.pad(velocity, [(0, 0), (context_frames, 0), (0, 0), (0, 0), (0, 0)])


def make_batch(rows: int = SHAPE[0]) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    frames = SHAPE[1]
    batch = {
        "latent": rng.normal(size=(rows, *SHAPE[1:])),
        "image_cond": rng.normal(size=(rows, 1, *SHAPE[2:])),
        "w2c": np.tile(np.eye(4), (rows, frames, 1, 1)),
        "intrinsics": np.tile(np.diag([0.5, 0.8, 1.0]), (rows, frames, 1, 1)),
        "text_states": rng.normal(size=(rows, 5, 8)),
        "vision_states": rng.normal(size=(rows, 3, 5)),
    }
    arrays = {name: jnp.asarray(value, jnp.float32) for name, value in batch.items()}
    others = {"is_memory": np.arange(rows) == rows - 1, "action": np.zeros((rows, frames), np.int32)}
    return arrays | {name: jnp.asarray(x) for name, x in others.items()} | {"text_mask": jnp.ones((rows, 5), bool)}


def drawn(rows: int = SHAPE[0], cfg: shortcut.ShortcutConfig = SETTINGS, key: int = 0) -> shortcut.Draws:
    return shortcut.draw(jax.random.key(key), (rows, *SHAPE[1:]), CHUNK, cfg, context_time=14.0)


def chunks(batch: dict[str, Any], draws: shortcut.Draws) -> tuple[np.ndarray, np.ndarray]:
    """Return the clean chunks and their noise."""
    clean = distillation.divided(batch, draws.window.chunk, CHUNK)[1].latents
    return np.asarray(clean), np.asarray(draws.window.noise)


def found_loss(function: Any, rows: int, draws: shortcut.Draws) -> tuple[float, float]:
    value, metrics = _compiled(function, rows)(draws)
    return float(value), float(metrics["self_consistency"])


@functools.cache
def _compiled(function: Any, rows: int) -> Any:
    model: Any = Network(function)
    return jax.jit(lambda draws: shortcut.loss(model, make_batch(rows), draws, SETTINGS, chunk_frames=CHUNK))


def test_the_exact_straight_path_has_no_loss() -> None:
    draws = drawn()
    clean, _ = chunks(make_batch(), draws)
    # One row of four takes the two steps. The straight path through a point follows from its time and its end.
    ends = {8: clean, 2: clean[int(draws.offset) :: 4]}

    def along(x: jax.Array, time: jax.Array, size: jax.Array) -> jax.Array:
        del size
        return (x - ends[len(x)]) / (time / 1000)

    assert max(found_loss(along, 8, draws)) < 1e-8
    # A path of the wrong length is not straight.
    assert found_loss(lambda *x: 0.9 * along(*x), 8, draws)[1] > 1e-5


def velocity(x: Any, time: Any, size: Any) -> Any:
    """A velocity that depends on everything."""
    return 0.7 * x + 0.4 * time / 1000 - 0.9 * size / 1000 * x


def in_numpy(batch: dict[str, Any], draws: shortcut.Draws, cfg: shortcut.ShortcutConfig) -> tuple[float, float]:
    """Return loss and self-consistency, example by example in float64."""
    clean, noise = chunks(batch, draws)

    def shifted(u: float) -> float:
        return cfg.shift * u / (1 + (cfg.shift - 1) * u)

    losses, own = [], []
    for row in range(len(clean)):
        count, step = int(draws.steps[row]), int(draws.step[row])
        is_consistent = row % cfg.consistent == int(draws.offset)
        u = 1 - step / count if is_consistent else float(draws.u[row])
        sigma = shifted(u)
        x = (1 - sigma) * clean[row].astype(np.float64) + sigma * noise[row]
        if is_consistent:
            middle, end = shifted(u - 0.5 / count), shifted(u - 1 / count)
            is_finest = count == cfg.finest // 2
            v = velocity(x, 1000 * sigma, 0 if is_finest else 1000 * (sigma - middle))
            y = x + (middle - sigma) * v
            v = velocity(y, 1000 * middle, 0 if is_finest else 1000 * (middle - end))
            y = y + (end - middle) * v
            target, size = (y - x) / (end - sigma), sigma - end
        else:
            target, size = noise[row] - clean[row], 0.0
        error = np.mean((velocity(x, 1000 * sigma, 1000 * size) - target) ** 2) * min(sigma / cfg.sigma_floor, 1) ** 2
        losses.append(error)
        own += [error] if is_consistent else []
    return float(np.mean(losses)), float(np.mean(own)) if own else 0.0


@pytest.mark.parametrize("rows", [8, 6, 1])
def test_the_loss_in_numpy(rows: int) -> None:
    """Batches of whole groups leave rows out; the others do not."""
    seen = set()
    for key in range(4):
        draws = drawn(rows, key=key)
        seen |= {int(x) for x in draws.steps}
        np.testing.assert_allclose(
            found_loss(velocity, rows, draws), in_numpy(make_batch(rows), draws, SETTINGS), rtol=2e-5, atol=1e-8
        )
    assert seen <= {1, 2, 4}
    assert rows == 1 or seen == {1, 2, 4}


def test_schedules_and_their_steps() -> None:
    draws = shortcut.draw(jax.random.key(0), (4000, 8, 1, 1, 1), CHUNK, SETTINGS, context_time=14.0)
    counts = np.bincount(np.asarray(draws.steps))
    assert set(np.flatnonzero(counts)) == {1, 2, 4}
    assert counts[[1, 2, 4]].min() > 1200
    for count in (1, 2, 4):
        assert set(np.asarray(draws.step)[np.asarray(draws.steps) == count]) == set(range(count))


@functools.cache
def system() -> Any:
    return systems.create(make_config())


def test_weights_without_the_input_start_with_the_same_predictions() -> None:
    """The input starts without effect, and has one once it is trained."""
    batch, cfg = make_batch(2), system().model_config
    assert cfg.step_sizes
    plain_cfg = dataclasses.replace(cfg, step_sizes=False)
    with nnx.use_eager_sharding(False):
        graphdef, plain_graphdef = (
            nnx.graphdef(nnx.eval_shape(lambda x=x: HunyuanTransformer(x, rngs=nnx.Rngs(0)))) for x in (cfg, plain_cfg)
        )
        plain_state = nnx.state(nnx.eval_shape(lambda: HunyuanTransformer(plain_cfg, rngs=nnx.Rngs(0))))
        state = jax.jit(lambda: nnx.state(HunyuanTransformer(cfg, rngs=nnx.Rngs(0))))()
    rng = np.random.default_rng(0)
    noise = jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), x.dtype), state)
    names = {path for path, _ in nnx.to_flat_state(plain_state)}
    new = [path for path, _ in nnx.to_flat_state(state) if path not in names]
    assert {path[0] for path in new} == {"step_size"}
    shared = [(path, x) for path, x in nnx.to_flat_state(noise) if path in names]
    fresh = [(path, x) for path, x in nnx.to_flat_state(state) if path not in names]
    started = nnx.merge(graphdef, nnx.from_flat_state(shared + fresh))
    plain = nnx.merge(plain_graphdef, nnx.from_flat_state(shared))
    trained = nnx.merge(graphdef, noise)
    context, chunk = distillation.divided(batch, jnp.array([1, 2]), CHUNK)
    text = TextInputs(batch["text_states"], batch["text_mask"], batch["vision_states"])

    @functools.partial(jax.jit, static_argnames="size")
    def predict(model: HunyuanTransformer, size: float | None) -> jax.Array:
        return distillation.velocity(
            model,
            text,
            batch["image_cond"],
            context,
            chunk,
            time=jnp.full(2, 700.0),
            context_time=jnp.full(2, 14.0),
            step_size=None if size is None else jnp.full(2, size),
        )

    expected = predict(plain, None)
    for size in (None, 0.0, 300.0):
        np.testing.assert_allclose(predict(started, size), expected, rtol=1e-5)
    np.testing.assert_allclose(predict(trained, None), predict(trained, 0.0), rtol=1e-5)
    assert float(jnp.abs(predict(trained, 300.0) - predict(trained, 0.0)).max()) > 1e-3


def test_sampling_gives_the_size_of_each_step() -> None:
    """Two steps of the first chunk, by the prediction that training makes."""
    cfg, batch = system(), make_batch(1)
    model = nnx.merge(*rollout_examples.weights(cfg))
    sample = latents.SampleConfig(num_steps=2, shift=5.0, guidance=1.0)
    session = AutoregressiveSession(model, sample=sample, memory_config=cfg.memory, points=cfg.points())
    text = TextInputs(batch["text_states"], batch["text_mask"], batch["vision_states"])
    cameras = rollout_examples.path()
    controls = Controls(cameras.action[:CHUNK], cameras.w2c[:CHUNK], cameras.intrinsics[:CHUNK])
    noise = np.asarray(jax.random.normal(jax.random.key(0), (CHUNK, 2, 2, 4)))
    session.reset(np.asarray(batch["image_cond"][0]), text)
    found = session.step(controls, noise)
    own = {"action": cameras.action, "w2c": cameras.w2c.astype(np.float32), "intrinsics": cameras.intrinsics}
    batch |= {name: jnp.asarray(x[None, : SHAPE[1]]) for name, x in own.items()}
    context, chunk = distillation.divided({**batch, "is_memory": jnp.array([False])}, jnp.array([0]), CHUNK)

    @jax.jit
    def rolled_out(scale: float) -> jax.Array:
        x, levels = jnp.asarray(noise)[None], flow_matching.sampling_sigmas(2, 5.0)
        for before, after in ((levels[0], levels[1]), (levels[1], levels[2])):
            predicted = distillation.velocity(
                model,
                text,
                batch["image_cond"],
                context,
                chunk._replace(latents=x),
                time=1000 * before[None],
                context_time=jnp.array([14.0]),
                step_size=scale * 1000 * (before - after)[None],
            )
            x = flow_matching.euler_step(x, predicted, before, after)
        return x[0]

    scale = np.abs(found).max()
    np.testing.assert_allclose(found, rolled_out(1.0), atol=1e-4 * scale)
    assert float(np.abs(found - rolled_out(0.5)).max()) > 1e-2 * scale


@pytest.mark.slow
@pytest.mark.parametrize("rows", [32, 8])
def test_devices_do_not_change_the_steps(rows: int) -> None:
    """Four devices split the batch: whole groups of four rows on each, and groups that cross devices."""
    config = make_config(**{"optimizer.name": "adamw", "optimizer.warmup_steps": 0, "optimizer.skip_norm": 0.0})
    rng = np.random.default_rng(0)
    spec = systems.create(config).batch_spec(rows)
    batch = {name: np.asarray(rng.standard_normal(entry.shape), entry.dtype) for name, entry in spec.items()}
    for name, size in (("w2c", 4), ("intrinsics", 3)):
        batch[name] = np.broadcast_to(np.eye(size, dtype=np.float32), batch[name].shape)
    one, first, last = distilled.train(config, batch, (1, 1, 1), 1)
    eight, _, _ = distilled.train(config, batch, (2, 2, 2), 1)
    for name in ("loss", "self_consistency", "grad_norm"):
        assert one[0][name] > 1e-3
        np.testing.assert_allclose(eight[0][name], one[0][name], rtol=5e-5, err_msg=name)
    changed = [(x != y).any() for x, y in zip(*map(jax.tree.leaves, (first.params, last.params)), strict=True)]
    assert np.mean(changed) > 0.8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.step_sizes": False}, r"config\.model\.step_sizes is False, expected True"),
        ({"loss.finest": 48}, "finest is 48, expected a power of two"),
        ({"loss.memory_times": (9, 2)}, "must be an increasing pair"),
        ({"sample.rollout.mode": "bidirectional"}, "expected 'autoregressive', which is the kind of model"),
    ],
)
def test_contradictions_are_reported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        systems.create(make_config(**changes))
