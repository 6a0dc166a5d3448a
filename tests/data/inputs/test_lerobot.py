"""LeRobot data sets that lerobot itself has written: version 3.0 with videos and with images, and version 2.1.

`lerobot_sets.tar.xz` was made by lerobot 0.4.4 and 0.3.3: three episodes of 14, 17 and 20 frames at 10 frames/s, with
two cameras. In frame t of episode e the pixels are 20 + 12 t, with a strip of 200 at the left that is 8 e + 4 pixels
wide, and the action is (t, e, -t, 100 if t is odd).
"""

import json
import pathlib
import tarfile

import numpy as np
import pytest
from pyarrow import parquet

from jworld.data.inputs import clips, fitting, formats, items, lerobot
from jworld.utils.errors import UserError

SETS = pathlib.Path(__file__).parent / "lerobot_sets.tar.xz"
CUT = clips.CutConfig(fit=fitting.Fit(width=64, height=48), frames=9)
TOP = items.ListOptions(camera="top")


@pytest.fixture
def sets(tmp_path):
    with tarfile.open(SETS) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def read(folder: pathlib.Path, cut: clips.CutConfig = CUT, **options) -> list[clips.Clip]:
    listing = formats.list_items("lerobot", folder, options=items.ListOptions(**{"camera": "top", **options}))
    return [clip for item in listing.items for clip in clips.read_clips(item, cut)]


def times(clip: clips.Clip) -> list[int]:
    """Return the numbers of a clip's frames by their gray."""
    return [round((float(frame[24, 60].mean()) - 20) / 12) for frame in clip.frames]


@pytest.mark.parametrize("name", ["v30", "images", "v21"])
def test_episodes_begin_and_end_where_lerobot_says(sets, name):
    found = read(sets / name)
    assert [(clip.item, clip.start, clip.caption) for clip in found] == [
        ("episode_000000", 0, "pick up block 0"),
        ("episode_000001", 0, "pick up block 1"),
        ("episode_000002", 0, "pick up block 2"),
        ("episode_000002", 9, "pick up block 2"),
    ]
    assert [times(clip) for clip in found] == [list(range(9))] * 3 + [list(range(9, 18))]
    # The strip belongs to the episode, so no frame of a neighbor in the same file is shown.
    widths = [int((np.abs(clip.frames[0, 24, :, 0].astype(int) - 200) < 30).sum()) for clip in found]
    assert all(abs(width - (8 * int(clip.item[-1]) + 4)) <= 1 for width, clip in zip(widths, found, strict=True))
    # Commands of the frame before, from the range in the data set to [-1, 1].
    first, last = found[1].commands, found[3].commands
    assert first is not None
    assert last is not None
    steps = np.arange(8)
    expected = np.stack([2 * steps / 19 - 1, np.zeros(8), 1 - 2 * steps / 19, np.where(steps % 2, 1, -1)], axis=1)
    np.testing.assert_allclose(first, expected, atol=1e-6)
    np.testing.assert_allclose(last[:, 0], 2 * np.arange(9, 17) / 19 - 1, atol=1e-6)


@pytest.mark.parametrize("name", ["v30", "images", "v21"])
def test_several_cameras_together(sets, name):
    """A clip has the same moments of both cameras, in the order of --camera; models of several have no commands."""
    clip = read(sets / name, camera="wrist=3,top=0")[3]
    assert (clip.item, clip.start, clip.captions) == ("episode_000002", 9, ("pick up block 2",) * 2)
    assert clip.frames.shape == (2, 9, 48, 64, 3)
    for one, camera in zip(clip.frames, ("wrist", "top"), strict=True):
        np.testing.assert_array_equal(one, read(sets / name, camera=camera)[3].frames)
    assert clip.commands is None
    listing = formats.list_items("lerobot", sets / name, options=items.ListOptions(camera="wrist=3,top=0"))
    assert listing.facts == {"views": {"names": ["wrist", "top"], "ids": [3, 0]}}


def test_cameras_and_commands_by_name(sets):
    wrist = read(sets / "v30", camera="observation.images.wrist")[0]
    assert times(wrist)[0] > 15  # inverted
    chosen = read(sets / "v30", commands="action:gripper,shoulder")[1].commands
    everything = read(sets / "v30")[1].commands
    assert chosen is not None
    assert everything is not None
    np.testing.assert_array_equal(chosen, everything[:, [3, 0]])
    state = formats.list_items(
        "lerobot", sets / "v30", options=items.ListOptions(camera="top", commands="observation.state")
    )
    assert state.facts["commands"] == {
        "feature": "observation.state",
        "names": ["shoulder", "elbow", "wrist", "gripper"],
        "low": [-1, 0, 0, 0],
        "high": [18, 2, 0, 0],
    }
    assert state.facts["camera"] == "observation.images.top"


def test_a_lower_frame_rate_takes_the_last_command(sets):
    slow = clips.CutConfig(fit=fitting.Fit(width=64, height=48), frames=5, fps=5)
    found = read(sets / "v30", slow)[2]
    assert times(found) == [0, 2, 4, 6, 8]
    assert found.commands is not None
    np.testing.assert_allclose((found.commands[:, 0] + 1) * 19 / 2, [1, 3, 5, 7], atol=1e-5)


def test_held_out_episodes(sets):
    info = sets / "v21" / lerobot.INFO
    facts = json.loads(info.read_text())
    info.write_text(json.dumps(facts | {"splits": {"train": "0:2", "val": "2:3", "test": "3:3"}}))
    listing = formats.list_items("lerobot", sets / "v21", options=TOP)
    assert [item.split for item in listing.items] == ["train", "train", "val"]
    assert listing.notes == ["the split 'test' is ignored: a data set has the splits train and val"]


@pytest.mark.parametrize(
    "name, changes, message",
    [
        ("v30", {"codebase_version": "v1.6"}, "codebase_version is 'v1.6', expected one of 2.0, 2.1, 3.0"),
        ("v30", {"fps": "fast"}, "fps is 'fast', expected a positive number"),
        ("v30", {"data_path": "../../{chunk_index}.parquet"}, "expected a path below the data set"),
        ("v30", {"data_path": "/etc/{chunk_index}"}, "expected a path below the data set"),
        ("v30", {"data_path": "data/{chunk_index.__class__}"}, "__class__} is not a readable parquet file"),
        ("v30", {"video_path": "videos/{secret}.mp4"}, "'secret' is unknown"),
        ("v30", {"features": {}}, "lists no camera"),
        ("v21", {"features": []}, "features are .*, expected an object of objects"),
        ("v21", {"chunks_size": 0.5}, "chunks_size is 0.5"),
        ("v21", {"splits": {"train": "all"}}, "split 'train' is 'all', expected such as '0:50'"),
    ],
)
def test_broken_facts(sets, name, changes, message):
    info = sets / name / lerobot.INFO
    info.write_text(json.dumps(json.loads(info.read_text()) | changes))
    with pytest.raises(UserError, match=message):
        read(sets / name)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"camera": ""}, "2 cameras, give one of observation.images.top, observation.images.wrist as --camera"),
        ({"camera": "left"}, "--camera is 'left', give one of"),
        ({"commands": "torque"}, "--commands is 'torque', expected one of action, observation.state"),
        ({"commands": "action:hip"}, "action has no 'hip', expected some of shoulder, elbow, wrist, gripper"),
    ],
)
def test_unknown_names(sets, options, message):
    with pytest.raises(UserError, match=message):
        read(sets / "v30", **options)


def rewrite(path: pathlib.Path, change) -> None:
    parquet.write_table(change(parquet.read_table(path)), path)


@pytest.mark.parametrize(
    "file, change, message",
    [
        ("data", lambda table: table.slice(1), "has 13 rows of episode 0, the video decodes to 14 frames"),
        ("data", lambda table: table.drop_columns("action"), "has no column 'action'"),
        ("meta/episodes", lambda table: table.drop_columns("length"), "has no column 'length'"),
    ],
)
def test_tables_that_lack_something(sets, file, change, message):
    rewrite(sets / "v30" / file / "chunk-000/file-000.parquet", change)
    with pytest.raises(UserError, match=message):
        read(sets / "v30")


def test_damaged_files(sets):
    stats = sets / "v21" / lerobot.EPISODE_STATS
    stats.write_text(stats.read_text().replace('"max": [13.0', '"max": ["x"'))
    with pytest.raises(UserError, match="'max' of 'action' is missing or has not 4 numbers"):
        read(sets / "v21")
    (sets / "images" / "data/chunk-000/file-000.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="is not a readable parquet file"):
        read(sets / "images")


def test_a_video_of_another_length(sets):
    lines = sets / "v21" / lerobot.EPISODE_LINES
    lines.write_text(lines.read_text().replace('"length": 17', '"length": 16'))
    with pytest.raises(UserError, match="episode 1 shows 17 frames, expected 16 as in its table"):
        read(sets / "v21")


def test_a_name_that_is_no_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="someone/arm is neither a folder here nor could it be downloaded from the hub"):
        formats.list_items("lerobot", pathlib.Path("someone/arm"))
    with pytest.raises(UserError, match="data/arm is absent, expected a folder, or an id OWNER/NAME of the hub"):
        formats.list_items("lerobot", pathlib.Path("data/arm"))
