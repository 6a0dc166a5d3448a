"""Distribution matching of Cosmos: an oracle in numpy, a perfect critic, gradients of the parts, rollouts, meshes."""

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
from jworld.diffusion import few_steps
from jworld.models.cosmos.transformer import CosmosInputs
from jworld.systems.cosmos import distillation, sampling
from jworld.training import parts, score_losses
from jworld.utils import config as run_config
from jworld.utils import errors

RECIPE = pathlib.Path(__file__).parents[2] / "configs" / "cosmos_distill.py"
CHANNELS, FRAMES, SIZE = 8, 4, (2, 4)
#: Four evenly spaced levels, shifted by 5: the times of the published student are atan of infinity, 15, 5 and 5/3.
LEVELS = (1.0, 15 / 16, 5 / 6, 5 / 8, 0.0)


def make_config(**changes: Any) -> ml_collections.ConfigDict:
    """Load the recipe with a model of a few thousand parameters."""
    config = run_config.load_recipe(str(RECIPE))
    with config.unlocked():
        config.model.update({"channels": CHANNELS, "width": 48, "num_layers": 1, "text_dim": 16, "text_width": 16})
        config.data.clip.update({"latent_size": SIZE, "window_frames": FRAMES, "text_tokens": 6})
        config.update_from_flattened_dict(changes)
    return config


@functools.cache
def tiny() -> tuple[Any, dict[str, jax.Array], nnx.GraphDef, nnx.State]:
    """Return a system whose teacher has guidance, a batch, and weights of student, teacher and critic."""
    system: Any = systems.create(make_config(**{"loss.teacher_guidance": 2.0, "loss.sigma_floor": 1.0}))
    with nnx.use_eager_sharding(False):
        graphdef, shapes = nnx.split(nnx.eval_shape(lambda: system.init_training(nnx.Rngs(0))), nnx.Param)
    rng = np.random.default_rng(0)
    weights = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.standard_normal(x.shape), x.dtype), shapes)
    return system, make_batch(system, 2), graphdef, weights


def matching(last: int) -> distillation.WindowMatching:
    """Return the matching of a loss whose rollout ends after step `last`, with one and two conditioning frames."""
    system, batch, _, _ = tiny()
    found = distillation.matching(batch, jax.random.key(3), system.objective, system.sample)
    draws = found.draws._replace(last_step=jnp.int32(last))
    return dataclasses.replace(found, draws=draws, given=jnp.array([1, 2]))


class Numpy:
    """The formulas of one loss in numpy; only the network is that of the system."""

    def __init__(self, how: distillation.WindowMatching) -> None:
        self.frames = np.asarray(how.batch["latent"], np.float64)
        self.text, self.draws = how.batch["text_states"], jax.tree.map(np.asarray, how.draws)
        self.mask = (np.arange(FRAMES) < np.asarray(how.given)[:, None]).astype(np.float64)

    def clean(self, network: Any, x: np.ndarray, level: np.ndarray, text: jax.Array) -> np.ndarray:
        mask = self.mask[:, :, None, None, None]
        times = self.mask * (1e-4 / 1.0001) + (1 - self.mask) * level[:, None]
        video = mask * self.frames + (1 - mask) * x
        inputs = CosmosInputs(jnp.float32(video), jnp.float32(times), text, given=jnp.float32(self.mask))
        velocity = np.asarray(network(inputs), np.float64)
        return mask * self.frames + (1 - mask) * (x - level[:, None, None, None, None] * velocity)

    def noisy(self, model: Any, last: int) -> np.ndarray:
        """Return the input of the last step."""
        x = noise = np.asarray(self.draws.noise, np.float64)
        for step in range(last):
            clean = self.clean(model, x, np.full(2, LEVELS[step]), self.text)
            x = (1 - LEVELS[step + 1]) * clean + LEVELS[step + 1] * noise
        return x

    def scored(self, network: Any, made: np.ndarray, guidance: float) -> np.ndarray:
        level = np.asarray(self.draws.level, np.float64)
        share = level[:, None, None, None, None]
        x = (1 - share) * made + share * self.draws.score_noise
        clean = self.clean(network, x, level, self.text)
        return clean + guidance * (clean - self.clean(network, x, level, 0 * self.text)) if guidance else clean


@pytest.mark.parametrize("last", [0, 2])
def test_losses_equal_an_oracle_in_numpy(last: int) -> None:
    _, _, graphdef, weights = tiny()
    model: Any = nnx.merge(graphdef, weights)
    oracle = Numpy(matching(last))
    noisy = oracle.noisy(model, last)
    made = oracle.clean(model, noisy, np.full(2, LEVELS[last]), oracle.text)
    real, fake = oracle.scored(model.teacher, made, 2.0), oracle.scored(model.critic, made, 0.0)
    slope = (fake - real) / np.abs(made - real).mean(axis=(1, 2, 3, 4), keepdims=True)
    assert not slope[0, :1].any()
    assert not slope[1, :2].any()
    assert np.abs(slope[0, 1:]).min() > 0

    student = jax.jit(
        jax.value_and_grad(lambda w: score_losses.student_loss(nnx.merge(graphdef, w), matching(last))[0])
    )
    loss, gradient = student(weights)
    np.testing.assert_allclose(loss, 0.5 * np.mean(slope**2), rtol=1e-4)

    def along_slope(weights: nnx.State) -> jax.Array:
        how = matching(last)
        return jnp.sum(how.repeat(nnx.merge(graphdef, weights), jnp.float32(noisy)) * slope) / slope.size

    expected_gradient = jax.jit(jax.grad(along_slope))(weights)
    for found, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 * float(jnp.abs(expected).max()) + 1e-7)

    critic = jax.jit(lambda w: distillation.critic_loss(nnx.merge(graphdef, w), matching(last))[0])(weights)
    level = np.asarray(oracle.draws.level, np.float64)[:, None, None, None, None]
    weight = level**2  # the floor is 1
    assert weight.max() < 0.99
    np.testing.assert_allclose(critic, np.mean(weight * ((fake - made) / level) ** 2), rtol=1e-4)


def test_every_loss_has_gradients_of_its_own_part() -> None:
    _, _, graphdef, weights = tiny()
    owners = {"student": score_losses.student_loss, "critic": distillation.critic_loss}
    for owner, function in owners.items():
        gradient = jax.jit(jax.grad(lambda w, f=function: f(nnx.merge(graphdef, w), matching(2))[0]))(weights)
        trained = {
            str(path[0]) if path[0] in (parts.TEACHER, parts.CRITIC) else "student"
            for path, leaf in nnx.to_flat_state(gradient)
            if np.asarray(leaf[...]).any()
        }
        assert trained == {owner}


@pytest.mark.parametrize("steps", [1, 4])
def test_the_rollout_is_that_of_sampling(steps: int) -> None:
    _, batch, graphdef, weights = tiny()
    model: Any = nnx.merge(graphdef, weights)
    sample = sampling.SampleConfig(solver="few_steps", num_steps=steps, guidance=0.0)
    how = dataclasses.replace(matching(steps - 1), sample=sample)
    made = np.asarray(how.repeat(model, how.roll_out(model)))
    sampler, seen = sampling.WindowSampler(model, sample), []
    for row, given in enumerate((1, 2)):
        frames = np.asarray(batch["latent"][row, :given], np.float32)
        text = batch["text_states"][row : row + 1]
        for listener in (None, lambda *counts: seen.append(counts)):
            sampler.watch(listener)
            sampled = sampler(frames, text, how.draws.noise[row])
            np.testing.assert_allclose(sampled, made[row], atol=2e-5 * np.abs(made).max())
    assert seen == 2 * [(i + 1, steps) for i in range(steps)]


def test_levels_are_those_of_the_published_student() -> None:
    steps = few_steps.all_steps(4, 5.0)
    np.testing.assert_allclose(steps.level, LEVELS[:-1], rtol=1e-6)
    np.testing.assert_allclose(steps.following, LEVELS[1:], rtol=1e-6)


def train(mesh: tuple[int, int, int], **changes: Any) -> tuple[list[dict[str, float]], Any, Any]:
    """Make two steps; after the first one the critic gets other weights than it trained."""
    config = make_config(**{"optimizer.skip_limit": 0, **changes})
    batch = {name: np.asarray(x) for name, x in make_batch(systems.create(config), 4).items()}
    return distilled.train(config, batch, mesh, 2, between=distilled.other_critic)


@pytest.mark.slow
def test_a_perfect_critic_gives_no_gradient() -> None:
    one, first, last = train((1, 1, 1), **{"critic.learning_rate": 1e-30})
    distilled.check_perfect_critic(one, first, last)
    # Four updates of the critic before each one of the student.
    updates = {
        name: [int(x) for x in jax.tree.leaves(state) if x.dtype == np.int32 and x.ndim == 0]
        for name, state in (("student", last.opt_state), ("critic", last.critic.opt_state))
    }
    assert (set(updates["student"]), set(updates["critic"])) == ({2}, {8})


@pytest.mark.slow
def test_eight_devices_make_the_same_steps() -> None:
    options = {"critic.updates": 2, "critic.learning_rate": 1e-3, "data.clip.latent_size": (4, 4)}
    one, eight = (train(mesh, **options)[0] for mesh in ((1, 1, 1), (2, 2, 2)))
    distilled.check_same_steps(one, eight, least=1e-3, tolerance=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init_from": ""}, r"config\.init_from is empty"),
        ({"sample.rollout.guidance": 7.0}, r"expected 'few_steps' and 0"),
        ({"sample.rollout.solver": "adams_bashforth"}, r"has solver 'adams_bashforth'"),
        ({"optimizer.trainable": "(?!teacher/).*"}, "which trains the critic too"),
        ({"loss.score_levels": (0.5, 0.1)}, "must be an increasing pair"),
        ({"loss.conditioning_frames": (2, 1)}, r"expected \(least, most\)"),
        ({"loss.kind": "consistency"}, "found 'consistency', expected one of flow, distribution_matching"),
    ],
)
def test_contradictions_are_reported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        systems.create(make_config(**changes))


def test_a_critic_is_needed() -> None:
    config = make_config()
    with config.unlocked():
        del config.critic
    with pytest.raises(errors.UserError, match=r"config\.critic is missing"):
        systems.create(config)
