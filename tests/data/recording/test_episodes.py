"""Raw episodes on disk: round trip, and refusal of damaged ones."""

import json

import numpy as np
import pytest

from jworld.data.recording import episodes
from jworld.utils import checksums, errors

FRAMES = 9


def smooth_video(frames: int = FRAMES, height: int = 48, width: int = 64) -> np.ndarray:
    """Make a drifting color gradient, uint8 [T, H, W, 3]."""
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    return np.stack([2 * x + 4 * t, 3 * y + 20, x + y + 40], -1).astype(np.uint8)


@pytest.fixture
def directory(tmp_path):
    episode = episodes.Episode(
        name="episode_00000",
        split="train",
        caption="a drifting gradient",
        fps=16.0,
        frames=smooth_video(),
        actions=["none"] + ["forward"] * 4 + ["forward+yaw_right"] * 4,
        w2c=np.tile(np.eye(4), (FRAMES, 1, 1)) + np.arange(FRAMES)[:, None, None] / 7,
        intrinsics=np.tile([0.5, 0.6, 0.5, 0.5], (FRAMES, 1)),
    )
    episodes.write_episode(tmp_path, episode)
    entry = {"name": episode.name, "split": "train", "frames": FRAMES, "caption": episode.caption}
    episodes.write_manifest(tmp_path, source="rooms", seed=0, fps=16.0, width=64, height=48, episodes=[entry])
    return tmp_path


def test_round_trip(directory):
    episode = episodes.read_episode(directory, "episode_00000")
    assert episode.frames.shape == (FRAMES, 48, 64, 3)
    assert episode.frames.dtype == np.uint8
    assert np.abs(episode.frames.astype(int) - smooth_video()).mean() < 3
    assert episode.actions == ["none"] + ["forward"] * 4 + ["forward+yaw_right"] * 4
    assert (episode.split, episode.caption, episode.fps) == ("train", "a drifting gradient", 16.0)
    np.testing.assert_allclose(episode.w2c[3], np.eye(4) + 3 / 7, atol=1e-8)
    np.testing.assert_allclose(episode.intrinsics[0], [0.5, 0.6, 0.5, 0.5])
    assert not list(directory.rglob("*.partial"))


def test_video_bytes_depend_only_on_the_frames(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        episodes.write_video(tmp_path / name, smooth_video(), fps=16.0)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_absent_data_set_is_reported(tmp_path):
    with pytest.raises(errors.UserError, match=r"manifest\.json is absent.*record_episodes"):
        episodes.read_manifest(tmp_path)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("camera_convention", "opengl", "camera_convention is 'opengl', expected 'opencv_w2c'"),
        ("version", 2, "version is 2, expected 1"),
        ("episodes", [{"name": "episode_00000"}], "lacks the key 'split'"),
    ],
)
def test_foreign_manifest_is_refused(directory, key, value, message):
    checksums.write_json(directory / "manifest.json", episodes.read_manifest(directory) | {key: value})
    with pytest.raises(errors.UserError, match=message):
        episodes.read_manifest(directory)


def test_a_changed_manifest_is_refused_and_one_without_checksum_opens(directory):
    path, found = directory / "manifest.json", episodes.read_manifest(directory)
    path.write_text(path.read_text().replace('"train"', '"val"'))
    with pytest.raises(errors.UserError, match=r"differs from its checksum.*record the data set again"):
        episodes.read_manifest(directory)
    path.write_text(json.dumps(found))
    assert episodes.read_manifest(directory) == found


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("frames", 13, "holds 9 frames of 64x48, expected 13 of 64x48 as in episode.json"),
        ("w2c", [[1.0]], r"w2c has shape \(1, 1\)"),
        ("actions", ["none"], "1 actions"),
    ],
)
def test_inconsistent_episode_is_refused(directory, key, value, message):
    path = directory / "episode_00000" / "episode.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(errors.UserError, match=message):
        episodes.read_episode(directory, "episode_00000")


def test_broken_video_and_unknown_name_are_refused(directory):
    (directory / "episode_00000" / "video.mp4").write_bytes(b"not a video")
    with pytest.raises(errors.UserError, match="not a readable video"):
        episodes.read_episode(directory, "episode_00000")
    with pytest.raises(errors.UserError, match="no episode 'episode_00009'"):
        episodes.read_episode(directory, "episode_00009")
