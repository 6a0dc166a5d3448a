"""Episodes written as a LeRobot data set: read again by the reader of that format, and its statistics."""

import json

import numpy as np
import precompute_inputs
import pytest
from pyarrow import parquet

from jworld.data.inputs import clips, fitting, formats
from jworld.data.recording import episodes, lerobot_sets
from jworld.precompute import to_lerobot
from jworld.utils.errors import UserError


@pytest.fixture
def written(tmp_path):
    precompute_inputs.write_episodes(tmp_path / "episodes", ["train", "val"])
    to_lerobot.main([f"--input={tmp_path / 'episodes'}", f"--output={tmp_path / 'set'}"])
    return tmp_path / "set"


def test_the_reader_finds_frames_captions_and_keys(written, capsys):
    cut = clips.CutConfig(fit=fitting.Fit(width=64, height=48), frames=13)
    listing = formats.list_items("lerobot", written)
    first, second = (next(clips.read_clips(item, cut)) for item in listing.items)
    assert (first.caption, second.caption, second.fps) == ("wall 0", "wall 1", 8.0)
    assert np.abs(second.frames.astype(int) - precompute_inputs.wall(1)).mean() < 6
    assert listing.facts["commands"]["names"] == list(lerobot_sets.DIRECTIONS)
    # "yaw_right" leads to every frame after the first; as it never is released here but at the end, it is 1.
    assert first.commands is not None
    assert first.commands[:, lerobot_sets.DIRECTIONS.index("yaw_right")].tolist() == [1.0] * 12


def test_states_are_camera_poses(written):
    table = parquet.read_table(written / "data/chunk-000/file-001.parquet")
    states = np.array(table.column("observation.state").to_pylist())
    # 2 degrees to the right per frame, about the downward y axis.
    np.testing.assert_allclose(states[:, 4], np.radians(2.0) * np.arange(13), atol=1e-6)
    np.testing.assert_allclose(states[:, [0, 1, 2, 3, 5]], 0, atol=1e-6)
    assert table.column("index").to_pylist() == list(range(13, 26))
    assert table.column("action").to_pylist()[-1] == [0.0] * 8


def test_statistics_of_episodes_and_of_the_set(written):
    stats = json.loads((written / "meta/stats.json").read_text())
    frames = np.concatenate([np.arange(13), np.arange(13)])
    assert stats["frame_index"]["count"] == [26]
    np.testing.assert_allclose(stats["frame_index"]["mean"], [frames.mean()])
    np.testing.assert_allclose(stats["frame_index"]["std"], [frames.std()])
    np.testing.assert_allclose(stats["index"]["std"], [np.arange(26).std()])
    assert np.shape(stats[lerobot_sets.CAMERA]["mean"]) == (3, 1, 1)


def test_mistakes(tmp_path, written):
    with pytest.raises(SystemExit) as found:
        to_lerobot.main([f"--input={tmp_path / 'episodes'}", f"--output={written}"])
    assert found.value.code == 2
    (tmp_path / "episodes" / "episode_00001" / "video.mp4").write_bytes(b"")
    with pytest.raises(SystemExit):
        to_lerobot.main([f"--input={tmp_path / 'episodes'}", f"--output={tmp_path / 'other'}"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episodes", "set"]
    with pytest.raises(UserError):
        episodes.read_episode(tmp_path / "episodes", "episode_00001")
