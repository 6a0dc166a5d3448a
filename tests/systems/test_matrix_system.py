"""The Matrix' first two stages: loss, clips from captions and controls, meshes, recipes, refusals."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import mesh_steps
import ml_collections
import numpy as np
import pytest
from flax import nnx
from tiny_systems import make_batch, make_model

from jworld import systems
from jworld.cameras import driving
from jworld.diffusion import v_prediction
from jworld.models.cogvideox.config import CogVideoXConfig
from jworld.parallel import mesh
from jworld.systems import training_job
from jworld.systems.matrix import evaluation, objective
from jworld.systems.matrix.session import ClipSession, Controls
from jworld.systems.matrix.system import Matrix
from jworld.systems.training_job import TrainingJob
from jworld.training import state as train_state
from jworld.utils import config as run_config
from jworld.utils import errors

RECIPES = pathlib.Path(__file__).parents[2] / "configs"
CHANNELS, SIZE, LATENTS = 8, (2, 4), 3


def make_config(recipe: str = "matrix_control.py", **changes: Any) -> ml_collections.ConfigDict:
    config = run_config.load_recipe(str(RECIPES / recipe))
    with config.unlocked():
        if not recipe.endswith(":2b"):
            config.model.update({"channels": CHANNELS, "width": 64, "num_layers": 2, "text_dim": 16, "text_tokens": 6})
            config.data.clip.update({"latent_size": SIZE, "window_frames": LATENTS})
            config.sample.rollout.update({"num_steps": 2, "guidance": 1.5})
            config.loss.snr_shift = 3.0
            if config.data.clip.controls:
                config.model.update({"control_dim": 16, "control_layers": (0, 2)})
        config.update_from_flattened_dict(changes)
    return config


class TinyAutoencoder:
    """A minimal autoencoder: 8 x 8 pixels per latent pixel, four frames per latent."""

    temporal_ratio = 4

    def encode(self, video: np.ndarray) -> np.ndarray:
        picked = video[:, ::4, ::8, ::8].astype(np.float32) / 255
        return np.tile(picked, (1, 1, 1, 1, 3))[..., :CHANNELS]

    def decode(self, latents: np.ndarray) -> np.ndarray:
        pixels = np.repeat(np.repeat(0.5 + 0.5 * np.tanh(latents[..., :3] / 2), 8, axis=2), 8, axis=3)
        frames = np.concatenate([pixels[:, :1], np.repeat(pixels[:, 1:], 4, axis=1)], axis=1)
        return np.round(255 * frames).astype(np.uint8)


class Encoders:
    autoencoder = TinyAutoencoder()

    def prompt(self, prompt: str) -> dict[str, np.ndarray]:
        states = np.random.default_rng(len(prompt)).standard_normal((4, 16))
        return {"text_states": states.astype(np.float32)}


def make_session(system: Matrix) -> ClipSession:
    return system.session(make_model(system), Encoders())  # type: ignore[arg-type]


def test_the_recipe_sets_the_signal_to_noise_ratio() -> None:
    for shift in (1.0, 3.0, 12.0):
        alphas = Matrix(make_config(**{"loss.snr_shift": shift})).alphas
        # The published schedule has shift 3; its last steps go to zero and are left out.
        ratio, published = (a[:500] / (1 - a[:500]) for a in (alphas, v_prediction.alphas_cumprod()))
        np.testing.assert_allclose(ratio * shift, published * 3, rtol=0.1)
    with pytest.raises(errors.UserError, match=r"config\.loss\.snr_shift: found 0\.0"):
        Matrix(make_config(**{"loss.snr_shift": 0.0}))
    for stage in ("lora", "control", "swin_dpm", "scm"):
        assert make_config(f"matrix_{stage}.py:2b").loss.snr_shift == 3.0


def test_a_clip_depends_on_caption_controls_and_seed() -> None:
    session = make_session(Matrix(make_config()))
    controls = Controls(("D", "D", "DR"))

    def clip(prompt: str = "a room", seed: int = 0, controls: Controls = controls) -> np.ndarray:
        session.reset(None, prompt, seed=seed)
        return session.step(controls)

    first = clip()
    assert first.shape == (9, 16, 32, 3)
    np.testing.assert_array_equal(clip(), first)
    # The last token is held.
    np.testing.assert_array_equal(clip(controls=Controls(("D", "D", "DR", "N"))), first)
    np.testing.assert_array_equal(clip(controls=Controls(("DR",))), clip(controls=Controls(("DR", "DR", "DR"))))
    for other in (clip("another room"), clip(seed=1), clip(controls=Controls(("DL",)))):
        assert (other != first).any()
    session.reset(None, "a room")
    again = [session.step(controls), session.step(controls)]
    np.testing.assert_array_equal(again[0], first)
    assert (again[1] != first).any()


def test_restoring_begins_at_the_noise_of_its_step() -> None:
    """The sampler receives the clean latents, with the noise of the step that it starts from."""
    system = Matrix(make_config(**{"sample.rollout.num_steps": 50}))
    session = make_session(system)
    frames = np.random.default_rng(3).integers(0, 256, (9, 16, 32, 3), dtype=np.uint8)
    sampled = {}
    session._sampler = lambda initial, conditions, noise, *, start: sampled.setdefault(start, np.asarray(initial))  # type: ignore[assignment]
    for start in (0, 49):
        session.reset(None, "a room")
        session.restore(frames, Controls(("D",)), start=start)
    clean = TinyAutoencoder().encode(frames[None])
    # Timestep 999, where no signal is left, and timestep 19.
    assert abs(np.corrcoef(sampled[0].ravel(), clean.ravel())[0, 1]) < 0.2
    a = system.alphas[19]
    noise = (sampled[49] - np.sqrt(a) * clean) / np.sqrt(1 - a)
    np.testing.assert_allclose(sampled[0], noise, atol=1e-3)


def test_draws_follow_the_config() -> None:
    shape = (4000, 5, 1, 1, 1)
    clips = objective.draw(jax.random.key(0), shape, objective.ObjectiveConfig())
    assert clips.timestep.shape == (4000,)
    assert (int(clips.timestep.min()), int(clips.timestep.max())) == (0, 999)
    windows = objective.draw(jax.random.key(0), shape, objective.ObjectiveConfig(kind="windows", groups=4))
    times = np.asarray(windows.timestep)
    assert times.shape == (4000, 5)
    assert (times[:, 0] == 0).all()
    assert (np.diff(times[:, 1:], axis=1) == 250).all()


def test_own_errors_change_what_the_model_sees_and_not_its_target() -> None:
    system = Matrix(make_config(**{"loss.kind": "windows", "loss.groups": 2}))
    model = make_model(system)
    example = objective.example_of({name: jnp.asarray(x) for name, x in make_batch(system, 2).items()})
    draws = objective.draw(jax.random.key(0), example.latents.shape, system.objective)
    assert draws.own is None

    @jax.jit
    def loss(draws: objective.Draws) -> jax.Array:
        return objective.velocity_loss(model, example, draws, system.alphas)

    plain, none, own = (float(loss(draws._replace(own=own))) for own in (None, np.zeros(2, bool), np.ones(2, bool)))
    assert none == pytest.approx(plain, rel=1e-6)
    predict = jax.jit(lambda latents: objective.predict(model, example._replace(latents=latents), draws, system.alphas))
    found = predict(predict(example.latents))
    error = v_prediction.clean_error(example.latents, found, v_prediction.at(system.alphas, draws.timestep))
    assert own == pytest.approx(float(error[:, 1:].mean()), rel=1e-5)
    assert abs(own - plain) > 1e-3


@pytest.mark.parametrize("kind", ["clip", "windows"])
def test_a_clean_prediction_is_the_output_at_every_time(kind: str) -> None:
    """v is made of the output so that samplers and losses find it again, from pure noise to the cleanest time."""
    changes = {"model.prediction": "clean", "model.output_kernel": 1}
    config = make_config(**{"loss.kind": kind, "loss.groups": 2}, **changes)
    system = Matrix(config)
    model = make_model(system)
    example = objective.example_of({name: jnp.asarray(x) for name, x in make_batch(system, 3).items()})
    frames = example.latents.shape[1]
    times = jnp.array([0, 400, 999]) if kind == "clip" else jnp.tile(jnp.linspace(0, 999, frames).astype(int), (3, 1))
    draws = objective.Draws(times, jax.random.normal(jax.random.key(1), example.latents.shape))
    noisy = v_prediction.add_noise(example.latents, draws.noise, v_prediction.at(system.alphas, times))
    found = objective.predict(model, example, draws, system.alphas)
    # The same weights without the conversion.
    model.cfg = dataclasses.replace(model.cfg, prediction="velocity", output_kernel=1)
    output = model(noisy, example.text, times, control=example.control)
    np.testing.assert_allclose(found, output, atol=1e-5)
    assert float(jnp.std(output)) > 0.01


def test_neighbors_are_joined_across_tokens_and_not_across_frames() -> None:
    config = make_config(**{"model.prediction": "clean", "model.output_kernel": 3})
    system = Matrix(config)
    joined = make_model(system)
    example = objective.example_of({name: jnp.asarray(x) for name, x in make_batch(system, 2).items()})
    draws = objective.Draws(jnp.full(2, 700), jax.random.normal(jax.random.key(1), example.latents.shape))

    def clean() -> np.ndarray:
        return np.array(objective.predict(joined, example, draws, system.alphas))

    for parameter in (joined.join.kernel, joined.join.bias):
        parameter[...] = jnp.zeros_like(parameter[...])
    expected = clean()
    # Channel 0 of the left neighbor is added to channel 1.
    joined.join.kernel[...] = joined.join.kernel[...].at[1, 0, 0, 1].set(1.0)
    expected[..., 1:, 1] += expected[..., :-1, 0].copy()
    np.testing.assert_allclose(clean(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"output_kernel": 3}, "needs 'clean'"), ({"prediction": "clean", "output_kernel": 2}, "expected an odd number")],
)
def test_kernels_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CogVideoXConfig(**options)


def test_errors_at_little_noise_count_as_at_the_floor() -> None:
    system = Matrix(make_config(**{"model.prediction": "clean", "loss.sigma_floor": 0.5}))
    model = make_model(system)
    example = objective.example_of({name: jnp.asarray(x) for name, x in make_batch(system, 2).items()})
    noise = jax.random.normal(jax.random.key(1), example.latents.shape)
    for time, expected in ((0, 0.25), (999, 1.0)):
        draws = objective.Draws(jnp.full(2, time), noise)
        wrong = objective.predict(model, example, draws, system.alphas) - example.latents
        loss = objective.velocity_loss(model, example, draws, system.alphas, sigma_floor=system.objective.sigma_floor)
        assert float(loss) == pytest.approx(float(jnp.mean(wrong**2)) / expected, rel=1e-5)


def test_a_floor_belongs_to_losses_of_v() -> None:
    with pytest.raises(errors.UserError, match=r"sigma_floor is 0\.3 and kind 'consistency', expected 0"):
        Matrix(make_config(**{"loss.kind": "consistency", "loss.groups": 2, "loss.sigma_floor": 0.3}))


def test_draws_of_own_errors() -> None:
    cfg = objective.ObjectiveConfig(kind="windows", groups=2, own_errors=0.25)
    shape = (4000, 3, 1, 1, 1)
    draws = objective.draw(jax.random.key(0), shape, cfg)
    assert draws.own is not None
    assert abs(float(draws.own.mean()) - 0.25) < 0.03
    # Measurements are those of the plain loss.
    assert objective.draw(jax.random.key(0), shape, cfg, jnp.float32(0.5)).own is None


@pytest.mark.slow
def test_mesh_equals_one_device() -> None:
    """With examples, weights and tokens split over 8 devices, loss and gradient are the same."""
    system = Matrix(make_config(**{"loss.kind": "windows", "loss.groups": 2}))
    batch = make_batch(system, 4)
    devices = mesh.make_mesh(data=2, fsdp=2, sequence=2)
    expected, actual = mesh_steps.loss_and_gradient(system, make_model(system), batch, devices)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected[1]))
    for one, eight in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        # The gradient of a key norm's bias is zero up to rounding: the bias adds the same to every logit.
        scale = float(jnp.abs(one).max()) + 1e-3 * largest
        np.testing.assert_allclose(np.asarray(one) / scale, np.asarray(eight) / scale, atol=2e-5)


def test_the_control_adapter_starts_without_effect_and_alone_has_gradients() -> None:
    system = Matrix(make_config())
    model = make_model(system)

    def initial_modulation() -> list[jax.Array]:
        with nnx.use_eager_sharding(False):
            modulation = system.init(nnx.Rngs(0)).control_blocks.norm.modulation.linear
        return [modulation.kernel[...], modulation.bias[...]]

    # The compiler removes all other parameters.
    kernel, bias = jax.jit(initial_modulation)()
    assert not kernel.any()
    assert not bias.any()
    place = model.control_blocks.norm.modulation.linear
    place.kernel.set_value(kernel)
    place.bias.set_value(bias)
    graphdef, trained, frozen = nnx.split(model, train_state.path_filter("control_.*"), ...)
    names = {str(path[0]) for path, _ in nnx.to_flat_state(trained)}
    assert names == {"control_embedding", "control_blocks"}
    batch = make_batch(system, 2)

    def loss(trained: nnx.State, control: jax.Array) -> jax.Array:
        whole = nnx.merge(graphdef, trained, frozen)
        return system.loss(whole, batch | {"control": control}, jax.random.key(0))[0]

    both = jax.jit(jax.value_and_grad(loss))
    value, grads = both(trained, batch["control"])
    other, _ = both(trained, -batch["control"])
    assert float(value) == float(other)
    moved = {"/".join(map(str, path)) for path, leaf in nnx.to_flat_state(grads) if np.abs(leaf[...]).max() > 0}
    assert moved == {f"control_blocks/norm/modulation/linear/{name}" for name in ("kernel", "bias")}


def test_tokens_of_a_clip() -> None:
    system = Matrix(make_config())
    (action,) = system.controls("D,DR", None)
    assert action.control == Controls(("D", "D", "DR"))
    assert action.name == "D, DR"
    (action,) = system.controls("DL", None)
    assert action.control == Controls(("DL",) * 3)
    assert Matrix(make_config("matrix_lora.py:base")).controls(None, None)[0].control is None


def test_tokens_of_a_clip_counted_as_in_the_original(capsys: pytest.CaptureFixture[str]) -> None:
    """The original's tokens count the first latent."""
    system = Matrix(make_config())
    (action,) = system.controls("D,DR,DL", None)
    assert action.control == Controls(("D", "DR", "DL"))
    assert "has 3 tokens for 3 latents: the first one belongs to the first latent" in capsys.readouterr().err
    (action,) = system.controls("D,DR,DL,N", None, "cut")
    assert action.control == Controls(("D", "DR", "DL"))
    assert "those after the 3 latents are left out" in capsys.readouterr().err
    (action,) = system.controls("random:1", None)
    assert action.control == Controls(("D", "D", "D"))


@pytest.mark.parametrize(
    ("recipe", "actions", "windows", "message"),
    [
        (
            "matrix_control.py",
            "D*4",
            None,
            "has 4 latents, expected at most 2, a clip without its first latent, or 3 with it: remove 2, or give "
            "--length cut",
        ),
        ("matrix_control.py", "D,X", None, "found 'X', expected"),
        ("matrix_control.py", None, None, "--actions is missing"),
        ("matrix_control.py", "D", 2, "the model generates single clips"),
        ("matrix_lora.py:base", "D", None, "the model has no control"),
    ],
)
def test_controls_that_do_not_fit(recipe: str, actions: str | None, windows: int | None, message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        Matrix(make_config(recipe)).controls(actions, windows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.clip.controls": ""}, "controls is '' but config.model.control_dim is 16"),
        ({"model.patch_size": 3}, "expected multiples of config.model.patch_size"),
        ({"mesh.sequence": 3}, "config.mesh.sequence is 3"),
        ({"data.clip.control_dropout": 1.5}, "control_dropout: found 1.5"),
        ({"loss.kind": "windows"}, "one more than a multiple of config.loss.groups 4"),
        ({"loss.kind": "windows", "loss.groups": 3}, "groups is 3, expected a divisor of 1000"),
        ({"loss.own_errors": 0.5}, "own_errors is 0.5 and kind 'clip', expected 0, or kind 'windows'"),
    ],
)
def test_configs_that_contradict_themselves(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        Matrix(make_config(**changes))


def test_a_stage_needs_the_previous_one(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.UserError, match=r"absent has no config\.json.*make that run first"):
        check_folders(make_config(init_from=str(tmp_path / "absent")), tmp_path / "run")
    check_folders(make_config("matrix_lora.py:base"), tmp_path / "run")


def check_folders(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    training_job.check_folders(TrainingJob.from_config(config, workdir), overwrite=False)


@pytest.mark.parametrize(
    ("recipe", "total", "trained"),
    [
        ("matrix_lora.py:2b", 1_693_783_872 + 117_964_800, 117_964_800),
        ("matrix_control.py:2b", 2_009_546_304, 315_762_432),
    ],
)
def test_published_recipes(recipe: str, total: int, trained: int) -> None:
    """Recipes have the published numbers of parameters, tokens of a clip, and operations of a step."""
    config = make_config(recipe)
    system = systems.create(config)
    with nnx.use_eager_sharding(False):
        params = nnx.state(nnx.eval_shape(lambda: system.init(nnx.Rngs(0))), nnx.Param)
    chosen, _ = nnx.split_state(params, train_state.path_filter(config.optimizer.trainable), ...)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == total
    assert sum(leaf.size for leaf in jax.tree.leaves(chosen)) == trained
    assert system.step_tokens(1) == 17 * 30 * 45
    assert system.step_flops(2) == 2 * system.step_flops(1) > 6 * 1.4e9 * system.step_tokens(1)


def test_parts_of_a_clip() -> None:
    assert evaluation.parts(9, 2) == [(0, 4), (4, 9)]
    assert evaluation.parts(33, 4)[-1] == (25, 33)
    assert driving.NULL == ""
