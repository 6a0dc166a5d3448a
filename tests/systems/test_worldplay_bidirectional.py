"""Training of WorldPlay's bidirectional model: the loss by hand, attention both ways, the window of rollouts."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rollout_examples
from flax import nnx
from rollout_examples import SIZE

from jworld import systems
from jworld.evaluation.held_out import Controls
from jworld.models.hunyuan.text import TextInputs
from jworld.models.hunyuan.transformer import FrameInputs, HunyuanTransformer
from jworld.systems.worldplay import bidirectional_objective, context_forcing, objective, references
from jworld.systems.worldplay.bidirectional import BidirectionalSession
from jworld.utils import errors

make_config = functools.partial(rollout_examples.small, "ar_mem.py:bidirectional")
#: First chunks of the examples: without memory, with a part of it, and with all.
STARTS = (0, 2, 5)


@pytest.fixture(scope="module")
def system() -> Any:
    return systems.create(make_config())


def network(system: Any) -> HunyuanTransformer:
    model: HunyuanTransformer = nnx.merge(*rollout_examples.weights(system))
    return model


def by_hand(model: Any, batch: dict[str, Any], draws: bidirectional_objective.Draws, row: int) -> float:
    """Return the loss of one example: its memory without padding, then its chunks, at positions 0, 1, 2, ..."""
    kept = np.flatnonzero(batch["taught"][row])
    recorded = batch["latent"].shape[1]
    where = np.array([*kept, *range(recorded, batch["w2c"].shape[1])])
    sigma, level = float(draws.level[row]), float(draws.context.sigma[row])
    clean = np.asarray(batch["target"][row], np.float64)
    noise = np.asarray(draws.noise[row], np.float64)
    past = np.asarray(batch["latent"][row, kept], np.float64)
    past = (1 - level) * past + level * np.asarray(draws.context.noise[row, kept])
    noisy = (1 - sigma) * clean + sigma * noise
    w2c, image = batch["w2c"][row : row + 1, where], batch["image_cond"][row]
    known = references.Known(jnp.asarray(past[None], jnp.float32), w2c[:, : len(kept)], jnp.ones((1, len(kept)), bool))
    condition = np.zeros((len(where), *clean.shape[1:-1], clean.shape[-1] + 1))
    if len(kept):
        condition[0] = np.concatenate([image[0], np.ones((*image.shape[1:-1], 1))], axis=-1)
        condition[len(kept) :] = references.find(w2c[:, len(kept) :], known, image[None])[0]
    else:
        nothing = references.Known(jnp.zeros((1, 1, *clean.shape[1:])), w2c[:, :1], jnp.zeros((1, 1), bool))
        condition[:] = references.find(w2c, nothing, image[None])[0]
    video = np.concatenate([np.concatenate([past, noisy]), condition], axis=-1)
    times = [float(draws.context.time[row])] * len(kept) + [1000 * sigma] * len(clean)
    frames = FrameInputs(
        jnp.asarray(video[None], jnp.float32),
        jnp.asarray([times]),
        batch["action"][row : row + 1, where],
        w2c,
        batch["intrinsics"][row : row + 1, where],
    )
    text = TextInputs(*(batch[name][row : row + 1] for name in ("text_states", "text_mask", "vision_states")))
    found = model(frames, text, jnp.asarray([1000 * sigma]), chunk_frames=None)[0, len(kept) :]
    # The recipe's sigma_floor is 0.3.
    return float(np.mean((found - (noise - clean)) ** 2) * min(sigma / 0.3, 1) ** 2)


def test_the_loss_is_that_of_frames_without_padding(system: Any) -> None:
    batch, model = rollout_examples.batch(system, STARTS), network(system)
    memory = len(system.rollouts.plan(rollout_examples.path().w2c, STARTS[2], system.points()).recorded)
    assert 8 < memory < 24
    np.testing.assert_array_equal(batch["taught"].sum(axis=1), [0, 8, memory])
    assert batch.keys() == system.batch_spec(1).keys()
    draws = bidirectional_objective.draw(jax.random.key(3), batch, system.objective, context_time=14.0)
    # One level below the floor, one context without noise.
    draws = draws._replace(level=jnp.array([0.9, 0.2, 0.6]))
    context = draws.context._replace(time=jnp.array([14.0, 300.0, 14.0]), sigma=jnp.array([0, 0.3, 0]))
    draws = draws._replace(context=context)
    found, metrics = jax.jit(bidirectional_objective.loss, static_argnums=3)(model, batch, draws, system.objective)
    expected = [by_hand(model, batch, draws, row) for row in range(3)]
    np.testing.assert_allclose(found, np.mean(expected), rtol=2e-5)
    assert metrics == {}
    assert min(expected) > 1e-3


def test_the_first_chunk_sees_the_last_one(system: Any) -> None:
    """A causal model does not; memory is seen by both."""
    batch, model = rollout_examples.batch(system, (5,)), network(system)
    noise = jax.random.normal(jax.random.key(0), batch["target"].shape)

    @functools.partial(jax.jit, static_argnames="chunk_frames")
    def first_chunk(batch: dict[str, Any], noise: jax.Array, chunk_frames: int | None) -> jax.Array:
        made, level = batch["target"].astype(jnp.float32), jnp.array([0.7])
        return context_forcing.score(
            model, batch, made, level, noise, chunk_frames=chunk_frames, guidance=1.0, context_time=14.0
        )[0][:, :SIZE]

    other_end = noise.at[:, -SIZE:].add(1.0)
    other_memory = {**batch, "latent": batch["latent"] + 1}
    for chunk_frames, sees in ((None, True), (SIZE, False)):
        plain = first_chunk(batch, noise, chunk_frames)
        changed = float(jnp.abs(first_chunk(batch, other_end, chunk_frames) - plain).max())
        assert (changed > 1e-4) == sees, changed
        assert float(jnp.abs(first_chunk(other_memory, noise, chunk_frames) - plain).max()) > 1e-4


def test_the_window_is_that_of_a_rollout(system: Any) -> None:
    """One denoising step from pure noise, with and without memory: sampling computes what training does."""
    session = BidirectionalSession(
        network(system),
        sample=system.sample.__class__(mode="bidirectional", num_steps=1, guidance=1.0),
        memory_config=system.memory,
        points=system.points(),
    )
    clip, cameras = rollout_examples.record(), rollout_examples.path()
    batch = rollout_examples.batch(system, (0,), clip)
    session.reset(clip["image_cond"], objective.text_inputs(batch))
    frames = session.chunk_frames
    noise = np.asarray(jax.random.normal(jax.random.key(0), (2, frames, 2, 2, 4)))
    made: list[np.ndarray] = []
    for step in range(2):
        part = slice(step * frames, (step + 1) * frames)
        # Frames of the rollout itself are the memory.
        latents = np.concatenate([*made, clip["latent"][len(made) * frames :]])
        batch = rollout_examples.batch(system, (step * frames // SIZE,), {**clip, "latent": latents})
        velocity, _ = jax.jit(context_forcing.score, static_argnames=("chunk_frames", "guidance"))(
            network(system),
            batch,
            jnp.zeros((1, frames, 2, 2, 4)),
            jnp.ones(1),
            noise[None, step],
            chunk_frames=None,
            guidance=1.0,
            context_time=14.0,
        )
        made.append(
            session.step(Controls(cameras.action[part], cameras.w2c[part], cameras.intrinsics[part]), noise[step])
        )
        expected = noise[step] - velocity[0]
        np.testing.assert_allclose(made[step], expected, atol=1e-4 * np.abs(expected).max())


def test_held_out_levels_and_sizes(system: Any) -> None:
    batch, model = rollout_examples.batch(system, STARTS), network(system)
    measure = jax.jit(lambda level: system.held_out_loss(model, batch, jax.random.key(0), level)[0])
    assert float(measure(0.1)) != float(measure(0.9))
    assert system.step_tokens(2) == 2 * 40 * 4
    (call,) = system.attention_calls()
    assert (call.mask, call.lengths[0]) == (None, 40 * 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample.rollout.mode": "autoregressive"}, "expected 'bidirectional', which is the kind of model"),
        ({"data.clip.curriculum": ((0, 16), (9, 36)), "loss.chunks": 5}, "has clips of 16"),
        ({"mesh.sequence": 16}, "does not divide the 40 latent frames of an example, 24 of memory and 16 of 4 chunks"),
        ({"loss.memory_times": (9, 2)}, "must be an increasing pair"),
        ({"loss.teacher": "x"}, "loss.teacher"),
    ],
)
def test_contradictions_are_reported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        systems.create(make_config(**changes))


def test_a_model_with_references_is_sampled_as_it_was_trained() -> None:
    config = rollout_examples.small("ar_mem.py", **{"sample.rollout.mode": "bidirectional"})
    with pytest.raises(errors.UserError, match=r"'flow' trains is autoregressive: set 'autoregressive'"):
        systems.create(config)
