"""The measure of motions in videos: numbers against planned paths, windows, the file, the training script."""

import pathlib
import runpy

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jworld.cameras import actions
from jworld.data.recording import explorer, recorder
from jworld.evaluation import motion as measures
from jworld.models import motion
from jworld.utils.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "train_motion.py"))


def test_numbers_are_steps_and_turns_of_a_planned_path() -> None:
    how = explorer.Motion(step=0.1, turn=2.0, margin=0.0)
    pose, path = np.zeros(3), [np.zeros(3)]
    for action in ("forward", "right", "yaw_right", "yaw_left", "backward", "none"):
        pose = explorer.follow(pose, action, how)[-1]
        path.append(pose)
    w2c = np.stack([explorer.world_to_camera(x, 0.0, z, yaw) for x, z, yaw in path])
    expected = [[0, 0.4, 0], [0.4, 0, 0], [0, 0, 8], [0, 0, -8], [0, -0.4, 0], [0, 0, 0]]
    np.testing.assert_allclose(measures.true_numbers(w2c), expected, atol=1e-9)


def test_windows_share_a_frame() -> None:
    frames = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    assert measures.windows(frames)[..., 0, 0, 0].tolist() == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]


def test_frechet_distance_of_shifted_and_stretched_features() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((4000, 3))
    assert measures.frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert measures.frechet_distance(features, features + np.array([3, 0, 0])) == pytest.approx(9, rel=1e-6)
    # Gaussians of deviations 1 and 2 in each of three directions: 3 (2 - 1)^2.
    assert measures.frechet_distance(features, 2 * features) == pytest.approx(3, rel=0.1)


def test_mirror_images_of_classes() -> None:
    for label in range(actions.NUM_LABELS):
        (forward, backward, right, left), (yaw_right, yaw_left, up, down) = actions.label_to_flags(label)
        expected = actions.flags_to_label((forward, backward, left, right), (yaw_left, yaw_right, up, down))
        found = SCRIPT["MIRRORED"][label]
        assert found == expected


def test_a_file_is_read_as_it_was_written(tmp_path: pathlib.Path) -> None:
    config = motion.MotionConfig(width=32, height=16, channels=4, features=8, scale=(0.1, 0.2, 4.0))
    model = motion.MotionNetwork(config, rngs=nnx.Rngs(0))
    motion.save(model, tmp_path / "motion.safetensors")
    read = motion.load(tmp_path / "motion.safetensors")
    assert read.config == config
    images = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 5, 16, 32, 3)), jnp.float32)
    for found, expected in zip(read(images), model(images), strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-3 * 4)
    frames = np.random.default_rng(1).integers(0, 256, (9, 24, 40, 3)).astype(np.uint8)
    seen = measures.MotionMeter.load(tmp_path / "motion.safetensors")(frames)
    assert (seen.labels.shape, seen.numbers.shape, seen.features.shape) == ((2,), (2, 3), (2, 8))
    (tmp_path / "motion.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"motion network .* is not a safetensors file"):
        motion.load(tmp_path / "motion.safetensors")


def test_the_script_writes_a_network(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    recorder.record(tmp_path / "episodes", source="rooms", episodes=8, frames=13, width=64, height=48)
    output = tmp_path / "motion.safetensors"
    SCRIPT["main"]([f"--episodes={tmp_path / 'episodes'}", f"--output={output}", "--steps=1"])
    printed = capsys.readouterr().out
    assert "held-out, as recorded: moves" in printed
    assert "held-out, blurred and noisy: moves" in printed
    episode = recorder.record_scripted("rooms", seed=3, actions=["none"] * 2, width=64, height=48)
    assert measures.MotionMeter.load(output)(episode.frames).numbers.shape == (2, 3)


def test_the_shipped_meter_reads_a_recording() -> None:
    meter = measures.MotionMeter.load(ROOT / "assets" / "motion" / "rooms.safetensors")
    actions_taken = ["yaw_right"] * 3 + ["forward"] * 3 + ["none"] * 2 + ["yaw_left"] * 3 + ["backward"] * 3
    episode = recorder.record_scripted("rooms", seed=3, actions=actions_taken, width=256, height=192)
    found = meter(episode.frames)
    assert [actions.label_name(int(label)) for label in found.labels] == actions_taken
    np.testing.assert_allclose(found.numbers, measures.true_numbers(episode.w2c[::4]), atol=2)
    np.testing.assert_allclose(found.numbers[:, :2], measures.true_numbers(episode.w2c[::4])[:, :2], atol=0.1)
