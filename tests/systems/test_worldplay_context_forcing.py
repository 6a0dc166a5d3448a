"""Context forcing of WorldPlay: memory of rollouts, rollouts as in sampling, scores of a perfect critic, gradients."""

import functools
from typing import Any

import distilled
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import rollout_examples
from flax import nnx
from rollout_examples import FRAMES, SIZE, path, weights

from jworld import systems
from jworld.diffusion import distribution_matching
from jworld.evaluation.held_out import Controls
from jworld.systems.worldplay import context_forcing, objective
from jworld.systems.worldplay.autoregressive import AutoregressiveSession
from jworld.utils import errors

CHUNKS = 2
SHAPE = (2, CHUNKS * SIZE, 2, 2, 4)
make_batch = rollout_examples.batch


def make_config(**changes: Any) -> ml_collections.ConfigDict:
    """Load the recipe with a model of a few thousand parameters."""
    return rollout_examples.small("ar_distill.py:forcing", **{"loss.chunks": CHUNKS} | changes)


@pytest.fixture(scope="module")
def system() -> Any:
    return systems.create(make_config())


def test_the_teacher_never_attends_to_a_generated_chunk(system: Any) -> None:
    """Memory is that of sampling, and the teacher's the student's without the rollout, for every prefix."""
    sizes, session = system.rollouts, system.session
    assert (sizes.recorded_frames, sizes.teacher_frames) == (16, 8)
    full = systems.create(make_config(**{"loss.score": "bidirectional"})).rollouts
    retrieved = set()
    for start in range(FRAMES // 4 - CHUNKS + 1):
        plan = sizes.plan(path().w2c, start, system.points())
        assert plan.recorded == sorted({frame for context in plan.contexts for frame in context} - set(plan.rollout))
        assert full.taught(plan) == plan.recorded
        assert len(plan.recorded) <= sizes.recorded_frames
        taught = sizes.taught(plan)
        assert set(taught) <= set(plan.recorded) & set(range(4 * start))
        assert taught == [*plan.recorded[:4], *plan.recorded[4:][-4:]]
        # The indices lead back to the frames.
        indices, places = sizes.indices(plan), [*plan.recorded, *[None] * (16 - len(plan.recorded)), *plan.rollout]
        for row, context in enumerate(plan.contexts):
            assert [places[i] for i in indices["context"][row][indices["context_valid"][row]]] == context
            retrieved |= set(context) - set(context[:4]) - set(context[-4:])
        assert [places[i] for i in np.flatnonzero(indices["taught"])] == taught
    assert retrieved
    assert session is not None


@functools.cache
def rolled_out(
    step_sizes: bool = False,
) -> tuple[Any, dict[str, Any], context_forcing.Draws, context_forcing.Rollout, jax.Array]:
    """Return system, batch, draws, rollout and its repetition; rows start at the first frame and after a prefix."""
    system: Any = systems.create(make_config(**{"model.step_sizes": step_sizes}))
    batch = make_batch(system, (0, 5))
    draws = context_forcing.draw(jax.random.key(0), SHAPE, 4, system.objective)._replace(last_step=jnp.int32(3))

    @jax.jit
    def both(model: Any) -> tuple[context_forcing.Rollout, jax.Array]:
        rollout = context_forcing.roll_out(model, batch, draws, sample=system.sample, size=SIZE)
        return rollout, context_forcing.repeat(model, batch, rollout, draws, sample=system.sample, size=SIZE)

    return system, batch, draws, *both(nnx.merge(*weights(system)))


def test_the_parallel_pass_repeats_the_rollout() -> None:
    _, batch, _, rollout, repeated = rolled_out()
    np.testing.assert_allclose(repeated, rollout.made, atol=1e-5 * float(jnp.abs(rollout.made).max()))
    # Generated frames are the memory of later chunks.
    np.testing.assert_array_equal(rollout.frames.latents[:, 16:], rollout.made)
    assert bool((batch["context"][:, 1] >= 16).any(axis=1).all())


@pytest.mark.slow
@pytest.mark.parametrize("step_sizes", [False, True])
def test_the_rollout_is_that_of_sampling(step_sizes: bool) -> None:
    system, batch, draws, rollout, repeated = rolled_out(step_sizes)
    np.testing.assert_allclose(repeated, rollout.made, atol=1e-5 * float(jnp.abs(rollout.made).max()))
    session = AutoregressiveSession(
        nnx.merge(*weights(system)), sample=system.sample, memory_config=system.memory, points=system.points()
    )
    text = objective.text_inputs({name: x[:1] for name, x in batch.items()})
    session.reset(np.asarray(batch["image_cond"][0]), text)
    cameras, w2c = path(), np.asarray(batch["w2c"][0, 16:])
    for chunk in range(CHUNKS):
        part = slice(chunk * SIZE, (chunk + 1) * SIZE)
        controls = Controls(cameras.action[part], w2c[part], cameras.intrinsics[part])
        made = session.step(controls, noise=np.asarray(draws.noise[0, part]))
        np.testing.assert_allclose(rollout.made[0, part], made, atol=1e-4 * np.abs(made).max())


def two_steps(mesh: tuple[int, int, int]) -> tuple[list[dict[str, Any]], Any, Any]:
    """Critic and teacher start with the same weights; after the first step the critic gets others."""
    # Gradients of random weights are large.
    options = {"critic.updates": 1, "critic.learning_rate": 1e-30, "optimizer.skip_norm": 0.0}
    config = make_config(**options, **{"optimizer.warmup_steps": 0})
    batch = {name: np.asarray(x) for name, x in make_batch(systems.create(config), (0, 5, 3, 1)).items()}
    return distilled.train(config, batch, mesh, 2, between=distilled.other_critic)


@pytest.mark.slow
def test_a_perfect_critic_gives_no_gradient() -> None:
    one, first, last = two_steps((1, 1, 1))
    distilled.check_perfect_critic(one, first, last)


@pytest.mark.slow
def test_eight_devices_make_the_same_steps() -> None:
    """The critic learns, so teacher and critic differ when the student's gradient is computed.

    From equal ones the student's gradient is a rounding error, which the optimizer enlarges to a whole update.
    """
    options = {"critic.updates": 2, "critic.learning_rate": 1e-3, "optimizer.skip_norm": 0.0}
    config = make_config(**options, **{"optimizer.warmup_steps": 0})
    batch = {name: np.asarray(x) for name, x in make_batch(systems.create(config), (0, 5, 3, 1)).items()}
    one, eight = (distilled.train(config, batch, mesh, 2)[0] for mesh in ((1, 1, 1), (2, 2, 2)))
    distilled.check_same_steps(one, eight, least=1e-2, tolerance=2e-5)


def test_the_gradient_of_distribution_matching() -> None:
    samples, real, fake = (jnp.arange(8.0).reshape(2, 4) * x for x in (1.0, 0.5, 2.0))
    slope = distribution_matching.gradient(samples, real, fake)
    found = jax.grad(lambda x: distribution_matching.loss(x, slope))(samples)
    np.testing.assert_allclose(found * samples.size, (fake - real) / jnp.mean(0.5 * samples, axis=1, keepdims=True))
    # A sample that the teacher predicts exactly.
    assert not distribution_matching.gradient(samples, samples, samples).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.chunks": 5}, "the window of an autoregressive teacher has 16"),
        ({"data.clip.curriculum": ((0, 16), (5, 36)), "loss.chunks": 6}, "has clips of 16"),
        ({"loss.score_levels": (0.5, 0.1)}, "must be an increasing pair"),
        ({"sample.rollout.guidance": 2.0}, "the guidance of a student's teacher is"),
        ({"optimizer.trainable": "(?!teacher/).*"}, "which trains the critic too"),
    ],
)
def test_contradictions_are_reported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        systems.create(make_config(**changes))


def test_the_score_is_that_of_the_teacher() -> None:
    """The starter weights are autoregressive."""
    folder = str(rollout_examples.CONFIGS.parent / "assets" / "starter")
    system = systems.create(make_config(**{"loss.teacher": folder}))
    assert set(map(str, system.parts.values())) == {folder}
    system = systems.create(make_config(**{"loss.score": "bidirectional", "loss.teacher": folder}))
    with pytest.raises(errors.UserError, match=r"the model in .* \(config\.loss\.teacher\) is autoregressive"):
        _ = system.parts


def test_a_critic_is_needed() -> None:
    config = make_config()
    with config.unlocked():
        del config.critic
    with pytest.raises(errors.UserError, match=r"config\.critic is missing"):
        systems.create(config)
