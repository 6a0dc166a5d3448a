"""The Cosmos system: loss, windows that continue each other, meshes, refusals."""

import importlib.util
import json
import pathlib
import types
from typing import Any

import jax
import jax.numpy as jnp
import mesh_steps
import ml_collections
import numpy as np
import pytest
from tiny_systems import make_batch, make_model

from jworld.cameras import pose_strings, robots
from jworld.parallel import mesh
from jworld.systems.cosmos import evaluation, objective, sampling
from jworld.systems.cosmos.session import Session
from jworld.systems.cosmos.system import Cosmos
from jworld.utils import errors

RECIPE = pathlib.Path(__file__).parents[2] / "configs" / "cosmos_video2world.py"
CHANNELS, SIZE = 8, (2, 4)


def make_config(variant: str = "tiny_action", **changes: Any) -> ml_collections.ConfigDict:
    spec = importlib.util.spec_from_file_location("cosmos_video2world", RECIPE)
    assert spec is not None
    assert spec.loader is not None
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)
    config = recipe.get_config(variant)
    with config.unlocked():
        if not variant.startswith("2b"):
            config.model.update({"channels": CHANNELS, "width": 64, "num_layers": 2, "text_dim": 16, "text_width": 16})
            config.data.clip.update({"latent_size": SIZE, "window_frames": 4, "text_tokens": 6})
            config.sample.rollout.update({"num_steps": 2, "guidance": 1.5})
            if variant == "tiny_action":
                config.model.action_dim = 21
        config.update_from_flattened_dict(changes)
    return config


class TinyAutoencoder:
    """A minimal autoencoder: 8 x 8 pixels per latent pixel, four frames per latent."""

    temporal_ratio = 4

    def encode(self, video: np.ndarray) -> np.ndarray:
        picked = video[:, ::4, ::8, ::8].astype(np.float32) / 255
        return np.tile(picked, (1, 1, 1, 1, 3))[..., :CHANNELS]

    def decode(self, latents: np.ndarray) -> np.ndarray:
        pixels = np.repeat(np.repeat(np.clip(latents[..., :3], 0, 1), 8, axis=2), 8, axis=3)
        frames = np.concatenate([pixels[:, :1], np.repeat(pixels[:, 1:], 4, axis=1)], axis=1)
        return np.round(255 * frames).astype(np.uint8)


class Fit:
    def frame(self, frame: np.ndarray) -> np.ndarray:
        return frame


class Encoders:
    autoencoder, fit, fps = TinyAutoencoder(), Fit(), 16.0

    def resize(self, frame: np.ndarray) -> np.ndarray:
        return self.fit.frame(frame)

    def prompt(self, prompt: str) -> dict[str, np.ndarray]:
        return {"text_states": np.full((2 + len(prompt) % 3, 16), 0.1 * len(prompt), np.float32)}


def make_session(system: Cosmos) -> Session:
    return system.session(make_model(system), Encoders())  # type: ignore[arg-type]


FRAME = np.random.default_rng(2).integers(0, 256, (16, 32, 3), dtype=np.uint8)


def test_loss_excludes_conditioning_frames_and_depends_on_all_inputs() -> None:
    """The noise of conditioning frames does not change the loss; text, motion and the other frames' noise do."""
    system = Cosmos(make_config())
    model, batch = make_model(system), make_batch(system, 2)
    draws = objective.draw(jax.random.key(0), batch["latent"].shape, system.objective)
    draws = draws._replace(given=jnp.array([1, 2]), keep_text=jnp.array([True, True]), sigma=jnp.full((2, 1), 2.0))
    loss = jax.jit(lambda batch, draws: objective.loss(model, batch, draws, system.objective))

    def value(draws: objective.Draws = draws, **changes: jax.Array) -> float:
        return float(loss(batch | changes, draws)[0])

    base = value()
    assert value(draws._replace(noise=draws.noise.at[:, 0].add(1.0))) == base
    assert value(draws._replace(noise=draws.noise.at[0, 1].add(1.0))) != base
    assert value(draws._replace(keep_text=jnp.array([False, True]))) != base
    assert value(motion=batch["motion"].at[0, 2].add(1.0)) != base
    total, metrics = loss(batch, draws)
    # The mean over all frames against the mean over the five predicted ones.
    assert float(total) == pytest.approx(10 * float(metrics["velocity_error"]) * 5 / 8, rel=1e-5)


def test_draws_follow_the_config() -> None:
    cfg = objective.ObjectiveConfig(high_ratio=0.5, text_dropout=0.25, conditioning_frames=(1, 2))
    draws = objective.draw(jax.random.key(1), (4000, 4, 1, 1, 1), cfg)
    assert 0.2 < float(1 - draws.keep_text.mean()) < 0.3
    assert set(np.unique(draws.given)) == {1, 2}
    high = np.asarray(draws.sigma) >= 200
    assert 0.45 < high.mean() < 0.55
    # exp(normal) * sqrt(frames).
    assert float(np.median(np.log(np.asarray(draws.sigma)[~high]))) == pytest.approx(np.log(2), abs=0.1)


def test_windows_continue_each_other() -> None:
    """There are 13 frames, then 12 new ones per window, which depend on motion, prompt and seed."""
    session = make_session(Cosmos(make_config()))
    motion = np.ones((3, 7), np.float32)

    def roll(prompt: str = "a room", seed: int = 0, second: np.ndarray = motion) -> list[np.ndarray]:
        session.reset(FRAME, prompt, seed=seed)
        return [session.step(motion), session.step(second)]

    first, second = roll()
    assert first.shape == (13, 16, 32, 3)
    assert second.shape == (12, 16, 32, 3)
    np.testing.assert_array_equal(first[0], TinyAutoencoder().decode(TinyAutoencoder().encode(FRAME[None, None]))[0, 0])
    again = roll()
    np.testing.assert_array_equal(np.concatenate(again), np.concatenate([first, second]))
    other = roll(second=-motion)
    np.testing.assert_array_equal(other[0], first)
    assert (other[1] != second).any()
    for changed in (roll(prompt="another room"), roll(seed=1)):
        assert (changed[0] != first).any()


def test_a_video_is_continued_from_its_last_five_frames() -> None:
    config = make_config("", **{"sample.rollout.conditioning_frames": 2})
    session = make_session(Cosmos(config))
    video = np.random.default_rng(3).integers(0, 256, (9, 16, 32, 3), dtype=np.uint8)
    session.reset(video, "a room")
    parts = [session.step(), session.step()]
    assert [len(part) for part in parts] == [13, 8]
    kept = TinyAutoencoder().decode(TinyAutoencoder().encode(video[None, -5:]))[0]
    np.testing.assert_array_equal(parts[0][:5], kept)


def test_guidance_moves_away_from_the_negative_prompt() -> None:
    """In x + g (x - negative), g = 0 needs one text, and with equal texts every g gives the same result."""
    system = Cosmos(make_config(""))
    model = make_model(system)
    noise = jax.random.normal(jax.random.key(0), (4, *SIZE, CHANNELS))
    given = np.ones((1, *SIZE, CHANNELS), np.float32)
    text = jax.random.normal(jax.random.key(1), (2, 6, 16))

    def sampled(guidance: float, text: jax.Array) -> np.ndarray:
        sampler = sampling.WindowSampler(model, sampling.SampleConfig(num_steps=2, guidance=guidance))
        return np.asarray(sampler(given, text, noise))

    plain = sampled(0.0, text[1:])
    np.testing.assert_allclose(sampled(3.0, text[jnp.array([1, 1])]), plain, atol=2e-4)
    assert np.abs(sampled(3.0, text) - plain).max() > 1e-2
    np.testing.assert_array_equal(plain[0], given[0])
    with pytest.raises(ValueError, match=r"guidance 3\.0 needs text of batch 2"):
        sampled(3.0, text[1:])


@pytest.mark.slow
def test_mesh_equals_one_device() -> None:
    """Examples, weights and frames are split over 8 devices: the same loss and gradient."""
    system = Cosmos(make_config())
    batch = make_batch(system, 4)
    devices = mesh.make_mesh(data=2, fsdp=2, sequence=2)
    expected, actual = mesh_steps.loss_and_gradient(system, make_model(system), batch, devices)
    for one, eight in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
        scale = float(jnp.abs(one).max()) + 1e-6
        np.testing.assert_allclose(np.asarray(one) / scale, np.asarray(eight) / scale, atol=2e-5)


def test_pose_strings_become_motions() -> None:
    """A pose string gives the camera's motion from latent to latent, in whole windows."""
    system = Cosmos(make_config())
    actions = system.controls("w-3, right-3", None)
    assert len(actions) == 2
    path = pose_strings.path("w-3, right-3", system.units)
    np.testing.assert_array_equal(actions[1].control, robots.camera_actions(path.w2c)[3:])
    forward, turning = actions[0].control[0], actions[1].control[0]
    np.testing.assert_allclose(forward[:3], [0, 0, 20 * 0.24], atol=1e-5)
    np.testing.assert_allclose(turning[3:6], [0, 20 * np.deg2rad(8.0), 0], atol=1e-5)


def test_annotations_of_recordings_become_motions(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in the original: the first six numbers times 20, the continuous gripper, the end without a window cut."""
    system, rng = Cosmos(make_config()), np.random.default_rng(0)
    actions, gripper = rng.uniform(-0.02, 0.02, (7, 7)), rng.uniform(0, 1, 8)
    path = tmp_path / "7.JSON"
    path.write_text(json.dumps({"action": actions.tolist(), "continuous_gripper_state": gripper.tolist()}))
    windows = [action.control for action in system.controls(str(path), None)]
    expected = np.concatenate([20 * actions[:, :6], gripper[1:, None]], axis=1)
    np.testing.assert_allclose(np.concatenate(windows), expected[:6], rtol=1e-6)
    said = capsys.readouterr().err
    assert "translations and rotations times 20, gripper from 'continuous_gripper_state'" in said
    assert "has 7 motions: the last 1 fill no window of 3 and are left out" in said
    padded = np.concatenate([action.control for action in system.controls(str(path), None, "pad")])
    np.testing.assert_allclose(padded[6:], [expected[6], *[[0] * 6 + [gripper[-1]]] * 2], rtol=1e-6)
    path.write_text(json.dumps({"action": actions[:6].tolist()}))
    same = np.concatenate([action.control for action in system.controls(str(path), None)])
    np.testing.assert_allclose(same, actions[:6], rtol=1e-6)
    assert "'action' is used as it is, so it must be scaled as in training" in capsys.readouterr().err
    path.write_text(json.dumps({"action": actions[:2].tolist(), "continuous_gripper_state": gripper[:3].tolist()}))
    with pytest.raises(errors.UserError, match=r"has 2 motions, expected .*add 1, or give --length pad$"):
        system.controls(str(path), None)


@pytest.mark.parametrize(
    ("variant", "pose", "windows", "message"),
    [
        ("tiny_action", "w-2", None, "2 motions, expected a multiple of 3, a window: add 1, or give --length pad$"),
        ("tiny_action", "w-4", None, "4 motions, .*: add 2, or give --length pad or --length cut$"),
        ("tiny_action", None, None, "--pose is missing"),
        ("", "w-3", None, "the model has no actions"),
    ],
)
def test_pose_strings_that_do_not_fit(variant: str, pose: str | None, windows: int | None, message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        Cosmos(make_config(variant)).controls(pose, windows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.clip.actions": ""}, "config.data.clip.actions is '' but config.model.action_dim is 21"),
        ({"model.action_dim": 28}, "config.model.action_dim is 28, expected 21"),
        ({"sample.rollout.conditioning_frames": 2}, "conditioning_frames is 2, expected 1"),
        ({"model.patch_size": (1, 3, 2)}, "expected multiples of config.model.patch_size"),
        ({"mesh.sequence": 3}, "config.mesh.sequence is 3"),
    ],
)
def test_configs_that_contradict_themselves(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        Cosmos(make_config(**changes))


def test_spans_of_windows() -> None:
    def session(given: int) -> Any:
        autoencoder = types.SimpleNamespace(temporal_ratio=4)
        encoders = types.SimpleNamespace(autoencoder=autoencoder)
        return types.SimpleNamespace(encoders=encoders, clip=types.SimpleNamespace(window_frames=4), given_pixels=given)

    assert evaluation.generated_spans(session(1), 3) == [(1, 13), (13, 25), (25, 37)]
    assert evaluation.generated_spans(session(5), 2) == [(5, 13), (13, 21)]
    assert [evaluation.total_latents(session(5), windows) for windows in (1, 2)] == [4, 6]


@pytest.mark.parametrize(("variant", "tokens"), [("2b", 84_480), ("2b_action", 4 * 30 * 40)])
def test_published_recipes(variant: str, tokens: int) -> None:
    """A published clip has the expected tokens, and a step the expected operations."""
    system = Cosmos(make_config(variant))
    assert system.step_tokens(1) == tokens
    assert system.step_flops(2) == 2 * system.step_flops(1) > 6 * 1.9e9 * tokens
