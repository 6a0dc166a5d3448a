"""Consistency distillation of WorldPlay: an oracle has loss zero, and the networks run exactly as in a rollout."""

import dataclasses
import pathlib
from typing import Any

import distilled
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx

from jworld import systems
from jworld.models.hunyuan.config import HunyuanConfig
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import HunyuanTransformer
from jworld.systems.worldplay import autoregressive, distillation, latents, references
from jworld.training import parts
from jworld.utils import config as run_config
from jworld.utils import errors

RECIPE = pathlib.Path(__file__).parents[2] / "configs" / "ar_distill.py"
#: Latents of a window, and of its chunks: three chunks of context at most.
SHAPE, CHUNK = (5, 8, 2, 2, 4), 2
CONFIG = HunyuanConfig(
    channels=SHAPE[-1],
    width=32,
    num_heads=4,
    num_layers=1,
    rope_dims=(4, 2, 2),
    refiner_layers=1,
    text_dim=6,
    glyph_dim=None,
    vision_dim=5,
    dtype=jnp.float32,
    remat="none",
)
SETTINGS = distillation.ConsistencyConfig(solver_steps=3, teacher_guidance=1.0, noisy_context=0.0)


class Oracle(nnx.Module):
    """A model that returns the exact velocity of every trajectory, times `scale`."""

    def __init__(self, clean: jax.Array, noise: jax.Array, scale: float = 1.0):
        self.velocity, self.scale, self.cfg = nnx.data(noise - clean), scale, CONFIG

    def __call__(self, frames: Any, *_: Any, context_frames: int, **__: Any) -> jax.Array:
        return jnp.pad(self.scale * self.velocity, [(0, 0), (context_frames, 0), (0, 0), (0, 0), (0, 0)])


def make_batch(rows: int = SHAPE[0]) -> dict[str, Any]:
    """Make a batch in the shapes of `CONFIG`, whose last row is a memory sample."""
    rng = np.random.default_rng(0)
    count, frames = rows, SHAPE[1]
    turn = np.linspace(0, 1, frames)
    w2c = np.tile(np.eye(4, dtype=np.float32), (count, frames, 1, 1))
    w2c[:, :, 0, 0] = w2c[:, :, 2, 2] = np.cos(turn)
    w2c[:, :, 0, 2], w2c[:, :, 2, 0] = np.sin(turn), -np.sin(turn)
    batch = {
        "latent": rng.normal(size=(count, *SHAPE[1:])).astype(np.float32),
        "image_cond": rng.normal(size=(count, 1, *SHAPE[2:])).astype(np.float32),
        "w2c": w2c,
        "intrinsics": np.tile(np.diag([0.5, 0.8, 1.0]).astype(np.float32), (count, frames, 1, 1)),
        "action": rng.integers(0, 9, (count, frames)).astype(np.int32),
        "is_memory": np.arange(count) == count - 1,
        "text_states": rng.normal(size=(count, 4, 6)).astype(np.float32),
        "text_mask": np.tile(np.arange(4) < 3, (count, 1)),
        "vision_states": rng.normal(size=(count, 3, 5)).astype(np.float32),
    }
    return {name: jnp.asarray(value) for name, value in batch.items()}


@jax.jit
def oracle_loss(draws: distillation.Draws, scale: float) -> tuple[jax.Array, jax.Array]:
    batch = make_batch()
    chunk, noise = distillation.divided(batch, draws.window.chunk, CHUNK)[1].latents, draws.window.noise
    student: Any = Oracle(chunk, noise, scale)
    student.teacher = Oracle(chunk, noise)
    value, metrics = distillation.loss(student, student, batch, draws, SETTINGS, chunk_frames=CHUNK)
    return value, metrics["data_error"]


def test_an_oracle_has_loss_zero_at_every_step_of_the_teacher() -> None:
    draws = distillation.draw(jax.random.key(0), SHAPE, CHUNK, SETTINGS, context_time=14.0)
    for number in range(SETTINGS.solver_steps):
        draws = draws._replace(step=jnp.full(SHAPE[0], number))
        assert max(map(float, oracle_loss(draws, 1.0))) < 1e-10
        assert float(oracle_loss(draws, 0.9)[0]) > 1e-6


def test_chunks_have_contexts_of_every_size() -> None:
    batch, chunks = make_batch(), jnp.array([0, 1, 2, 3, 0])
    context, chunk = distillation.divided(batch, chunks, CHUNK)
    # The last row is a memory sample: all others are context of its last chunk.
    np.testing.assert_array_equal(context.valid.sum(axis=1), [0, 2, 4, 6, 6])
    np.testing.assert_array_equal(chunk.position[:, 0], [0, 2, 4, 6, 6])
    np.testing.assert_array_equal(chunk.latents[2], batch["latent"][2, 4:6])
    np.testing.assert_array_equal(chunk.is_first[:2], [[True, False], [False, False]])
    draws = distillation.draw(
        jax.random.key(0), SHAPE, CHUNK, dataclasses.replace(SETTINGS, noisy_context=0.5), context_time=14.0
    )
    np.testing.assert_array_equal(draws.window.context.sigma > 0, draws.window.context.time != 14)


@pytest.mark.parametrize(
    "options",
    [
        {"prediction": "clean", "references": True, "output_kernel": 3},
        pytest.param({"prediction": "velocity"}, marks=pytest.mark.slow),
    ],
)
def test_the_networks_run_as_in_a_rollout(options: Any) -> None:
    """The same prediction as with the KV cache of a rollout, for contexts of all sizes at once."""
    cfg = dataclasses.replace(CONFIG, **options)
    with nnx.use_eager_sharding(False):
        graphdef, shapes = nnx.split(nnx.eval_shape(lambda: HunyuanTransformer(cfg, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    model = nnx.merge(graphdef, jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), x.dtype), shapes))
    batch, chunks, times = make_batch(3), np.array([1, 2, 3]), np.array([900.0, 500.0, 100.0])
    context, chunk = distillation.divided(batch, jnp.asarray(chunks), CHUNK)
    text = TextInputs(batch["text_states"], batch["text_mask"], batch["vision_states"])
    found = jax.jit(distillation.velocity)(
        model, text, batch["image_cond"], context, chunk, time=jnp.asarray(times), context_time=jnp.full(3, 14.0)
    )
    with_cache = jax.jit(lambda model, inputs, cache: model.with_cache(inputs, cache)[0])
    sample, before = latents.SampleConfig(guidance=1.0, context_time=14.0), SHAPE[1] - CHUNK
    for row in range(3):
        words = jax.tree.map(lambda x, row=row: x[row : row + 1], text)
        image = np.asarray(batch["image_cond"][row])

        def frames(part: distillation.Clip, row: int = row) -> latents.Frames:
            # Only whether a frame is the first one matters of its number.
            fields = (1 - part.is_first, part.position, part.valid, part.action, part.w2c, part.intrinsics)
            return latents.Frames(*(np.asarray(field[row]) for field in fields))

        tokens = before * 4
        cache = autoregressive.start_cache(model, words, context_tokens=tokens)
        cache = autoregressive.cache_context(
            model, cache, image, np.asarray(context.latents[row]), frames(context), cfg=sample, context_tokens=tokens
        )
        known = references.Known(*(x[row : row + 1] for x in (context.latents, context.w2c, context.valid)))
        inputs = latents.frame_inputs(
            frames(chunk),
            chunk.latents[row],
            image,
            float(times[row]),
            1,
            known=known if cfg.references else None,
        )
        expected = with_cache(model, inputs, cache)[0]
        np.testing.assert_allclose(found[row], expected, atol=1e-5 * float(jnp.abs(expected).max()))


def make_config(**changes: Any) -> ml_collections.ConfigDict:
    """Load the recipe with a model of a few thousand parameters."""
    config = run_config.load_recipe(str(RECIPE))
    with config.unlocked():
        config.model.update({"channels": 4, "patch_size": (1, 1, 1), "width": 32, "num_layers": 1, "text_dim": 8})
        config.model.update({"rope_dims": (4, 2, 2)})
        config.data.clip.update({"latent_size": (2, 2), "text_tokens": 5})
        config.optimizer.warmup_steps = 0
        config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, "config.init_from is empty"),
        ({"optimizer.trainable": ".*"}, "which trains the teacher too"),
        ({"optimizer.ema_decay": 0.0}, "the target of the distillation is the EMA"),
        ({"loss.kind": "consistent"}, "expected one of flow, consistency"),
        ({"loss.memory_times": (9, 2)}, "must be an increasing pair"),
        ({"sample.rollout.mode": "bidirectional"}, "expected 'autoregressive', which is the kind of model"),
        ({"model.step_sizes": True}, "a student of consistency always predicts the end"),
    ],
)
def test_contradictions_are_reported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        systems.create(make_config(**changes))


def test_the_published_recipe_states_its_teacher() -> None:
    system: Any = systems.create(run_config.load_recipe(f"{RECIPE}:8b"))
    spec = system.batch_spec(2)
    assert spec["negative_states"] == spec["text_states"]
    assert system.copies == (parts.TEACHER, parts.CRITIC)
    assert system.loss_takes_ema


@pytest.mark.slow
def test_devices_do_not_change_the_steps_and_the_teacher_stays() -> None:
    options = {"loss.teacher_guidance": 3.0, "loss.teacher_dtype": "bfloat16", "optimizer.name": "adamw"}
    # The first step of a warmup has the learning rate 0, and gradients of random weights are large.
    options |= {"optimizer.warmup_steps": 0, "optimizer.skip_norm": 0.0}
    config = make_config(**options)
    rng = np.random.default_rng(0)
    spec = systems.create(config).batch_spec(4)
    batch = {name: np.asarray(rng.standard_normal(entry.shape), entry.dtype) for name, entry in spec.items()}
    for name, size in (("w2c", 4), ("intrinsics", 3)):
        batch[name] = np.broadcast_to(np.eye(size, dtype=np.float32), batch[name].shape)
    one, first, last = distilled.train(config, batch, (1, 1, 1), 1)
    eight, _, _ = distilled.train(config, batch, (2, 2, 2), 1)
    np.testing.assert_allclose([x["loss"] for x in one], [x["loss"] for x in eight], rtol=2e-5)
    for before, after in zip(jax.tree.leaves(first.frozen), jax.tree.leaves(last.frozen), strict=True):
        assert before.dtype == jnp.bfloat16
        np.testing.assert_array_equal(before, after)
    changed = [(x != y).any() for x, y in zip(*map(jax.tree.leaves, (first.params, last.params)), strict=True)]
    assert np.mean(changed) > 0.8
