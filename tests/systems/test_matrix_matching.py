"""Distribution matching of The Matrix' streams: rollouts of sampling, an oracle in numpy, a perfect critic, meshes."""

import dataclasses
import functools
import pathlib
from typing import Any

import distilled
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import nnx
from tiny_systems import make_batch

from jworld import systems
from jworld.systems.matrix import distillation, sampling, stream_matching
from jworld.training import parts, score_losses
from jworld.utils import config as run_config
from jworld.utils import errors

RECIPE = pathlib.Path(__file__).parents[2] / "configs" / "matrix_scm.py"
#: Groups of one latent; a window has 5 latents, and an example 9.
GROUPS, SLIDES, FRAMES = 4, 4, 5


def make_config(**changes: Any) -> ml_collections.ConfigDict:
    """Load the recipe with a model of a few thousand parameters."""
    config = run_config.load_recipe(f"{RECIPE}:matching")
    with config.unlocked():
        sizes = {"channels": 4, "width": 32, "num_heads": 2, "num_layers": 1, "time_dim": 16, "text_dim": 8}
        config.model.update(sizes | {"text_tokens": 5, "control_dim": 6, "control_layers": (0, 1)})
        config.data.clip.update({"latent_size": (2, 2), "window_frames": 1 + GROUPS + SLIDES})
        config.sample.rollout.window_frames = 1
        config.update_from_flattened_dict(changes)
    return config


@functools.cache
def tiny() -> tuple[Any, dict[str, jax.Array], nnx.GraphDef, nnx.State]:
    """Return a system of two steps per window, a batch, and weights of student, teacher and critic."""
    system: Any = systems.create(make_config(**{"sample.rollout.num_steps": 8, "loss.teacher_guidance": 2.0}))
    with nnx.use_eager_sharding(False):
        graphdef, shapes = nnx.split(nnx.eval_shape(lambda: system.init_training(nnx.Rngs(0))), nnx.Param)
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), shapes)
    return system, make_batch(system, 2), graphdef, weights


def matching(last: int) -> stream_matching.StreamMatching:
    """Return the matching of a loss whose last window ends after step `last`."""
    system, batch, _, _ = tiny()
    found = stream_matching.matching(batch, jax.random.key(3), system.objective, system.sample, system.alphas)
    scores = found.draws.scores._replace(last_step=jnp.int32(last))
    return dataclasses.replace(found, draws=found.draws._replace(scores=scores))


def test_the_rollout_is_that_of_sampling() -> None:
    system, batch, graphdef, weights = tiny()
    model: Any = nnx.merge(graphdef, weights)
    how = matching(0)
    stream = jax.jit(lambda w: how.roll_out(nnx.merge(graphdef, w)))(weights)
    sampler = sampling.StreamSampler(model, system.sample, system.alphas)
    for row in range(2):
        one = slice(row, row + 1)
        sampler.reset(jnp.float32(batch["latent"][one, :FRAMES]), how.draws.scores.noise[one])
        for number in range(SLIDES):
            control = batch["control"][one, number : number + FRAMES]
            conditions = sampling.Conditions(batch["text_states"][one], control)
            unused = jnp.zeros((2, 1, FRAMES - 1, 2, 2, 4))
            sampler.step(conditions, unused, how.draws.entering[number, one])
        largest = float(jnp.abs(sampler.window).max())
        np.testing.assert_allclose(stream.window[row], sampler.window[0], atol=1e-4 * largest)
    np.testing.assert_array_equal(stream.control, batch["control"][:, SLIDES:])
    # Recorded latents after the first window are not read.
    changed = dict(batch, latent=batch["latent"].at[:, FRAMES:].add(1.0))
    again = dataclasses.replace(how, batch=changed).roll_out(model)
    np.testing.assert_allclose(again.window, stream.window, atol=1e-5 * largest)


class Numpy:
    """The formulas of one loss in numpy; only the network is that of the system."""

    def __init__(self, how: stream_matching.StreamMatching) -> None:
        self.alphas, self.batch, self.draws = how.alphas, how.batch, jax.tree.map(np.asarray, how.draws.scores)

    def v(self, network: Any, x: np.ndarray, times: np.ndarray, text: jax.Array) -> np.ndarray:
        control = self.batch["control"][:, SLIDES:]
        return np.asarray(network(jnp.float32(x), text, jnp.asarray(times), control=control), np.float64)

    def clean(self, x: np.ndarray, v: np.ndarray, times: np.ndarray, known: np.ndarray) -> np.ndarray:
        a = self.alphas[times][:, :, None, None, None]
        found = np.sqrt(a) * x - np.sqrt(1 - a) * v
        found[:, 0] = known[:, 0]
        return found


def test_losses_equal_an_oracle_in_numpy() -> None:
    _, batch, graphdef, weights = tiny()
    model: Any = nnx.merge(graphdef, weights)
    how = matching(1)
    window = how.roll_out(model).window
    oracle, text, null = Numpy(how), batch["text_states"], batch["null_states"]
    # The second of two steps, in groups of 250 timesteps of which the first one's are halfway.
    times = np.tile(np.array([0, 124, 374, 624, 874]), (2, 1))
    x = np.asarray(window, np.float64)
    made = oracle.clean(x, oracle.v(model, x, times, text), times, x)
    np.testing.assert_allclose(how.repeat(model, how.roll_out(model)), made, atol=1e-4 * np.abs(made).max())

    offsets = (250 * oracle.draws.level).astype(int)[:, None]
    levels = np.concatenate([np.zeros((2, 1), int), 250 * np.arange(4) + offsets], axis=1)
    a = oracle.alphas[levels][:, :, None, None, None]
    noisy = np.sqrt(a) * made + np.sqrt(1 - a) * oracle.draws.score_noise

    def scored(network: Any, text: jax.Array) -> np.ndarray:
        return oracle.clean(noisy, oracle.v(network, noisy, levels, text), levels, made)

    without = scored(model.teacher, null)
    real, fake = without + 2.0 * (scored(model.teacher, text) - without), scored(model.critic, text)
    slope = (fake - real) / np.abs(made - real).mean(axis=(1, 2, 3, 4), keepdims=True)
    loss = jax.jit(lambda w: score_losses.student_loss(nnx.merge(graphdef, w), matching(1))[0])(weights)
    np.testing.assert_allclose(loss, 0.5 * np.mean(slope**2), rtol=1e-3)

    error = oracle.v(model.critic, noisy, levels, text) - (
        np.sqrt(a) * oracle.draws.score_noise - np.sqrt(1 - a) * made
    )
    error[:, 0] = 0
    critic = jax.jit(lambda w: score_losses.critic_loss(nnx.merge(graphdef, w), matching(1))[0])(weights)
    np.testing.assert_allclose(critic, np.mean(error**2), rtol=1e-3)


def test_every_loss_has_gradients_of_its_own_part() -> None:
    _, _, graphdef, weights = tiny()
    for owner, function in (("student", score_losses.student_loss), ("critic", score_losses.critic_loss)):
        gradient = jax.jit(jax.grad(lambda w, f=function: f(nnx.merge(graphdef, w), matching(1))[0]))(weights)
        trained = {
            str(path[0]) if path[0] in (parts.TEACHER, parts.CRITIC) else "student"
            for path, leaf in nnx.to_flat_state(gradient)
            if np.asarray(leaf[...]).any()
        }
        assert trained == {owner}


def train(mesh: tuple[int, int, int], **changes: Any) -> tuple[list[dict[str, float]], Any, Any]:
    """Make two steps; after the first one the critic gets other weights than it trained."""
    config = make_config(**{"loss.teacher_guidance": 1.0, "optimizer.skip_limit": 0, **changes})
    batch = {name: np.asarray(x) for name, x in make_batch(systems.create(config), 4).items()}
    return distilled.train(config, batch, mesh, 2, between=distilled.other_critic)


@pytest.mark.slow
def test_a_perfect_critic_gives_no_gradient() -> None:
    one, first, last = train((1, 1, 1), **{"critic.learning_rate": 1e-30})
    distilled.check_perfect_critic(one, first, last)


@pytest.mark.slow
def test_eight_devices_make_the_same_steps() -> None:
    options = {"critic.updates": 2, "critic.learning_rate": 1e-3, "data.clip.latent_size": (4, 2)}
    one, eight = (train(mesh, **options)[0] for mesh in ((1, 1, 1), (2, 2, 2)))
    distilled.check_same_steps(one, eight, least=1e-3, tolerance=1e-4)


def test_students_are_compared_with_their_teacher() -> None:
    system: Any = systems.create(make_config(**{"loss.teacher_guidance": 1.5}))
    compared = distillation.compared(system.sample, system.objective)
    assert {name: (each.solver, each.num_steps, each.guidance) for name, each in compared.items()} == {
        "teacher in many steps": ("ddim", 40, 1.5),
        "teacher in few steps": ("ddim", 4, 1.5),
        "student": ("ddim", 4, 1.0),
        "student in twice the steps": ("ddim", 8, 1.0),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, "config.init_from is empty, expected a run of stage 3"),
        ({"optimizer.trainable": "(?!teacher/).*"}, "which trains the critic too"),
        ({"sample.rollout.solver": "dpm"}, "expected 'stream', 'ddim', 1 and 1"),
        ({"sample.rollout.guidance": 2.0}, "expected 'stream', 'ddim', 1 and 1"),
        ({"sample.rollout.groups": 2}, r"config\.sample\.rollout\.groups is 2 and config\.loss\.groups 4"),
        ({"loss.slides": 3}, r"config\.data\.clip\.window_frames is 9, expected 8"),
        ({"model.guidance_dim": 16}, "the teacher has one scale"),
        ({"loss.groups": 3}, "groups is 3, expected a divisor of 1000"),
        ({"loss.score_levels": (0.5, 0.1)}, "must be an increasing pair"),
        ({"loss.kind": "flow"}, "found 'flow', expected one of clip, windows, consistency, distribution_matching"),
    ],
)
def test_contradictions_are_reported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        systems.create(make_config(**changes))
