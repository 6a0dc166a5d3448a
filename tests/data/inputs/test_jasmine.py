"""ArrayRecord files of Jasmine: frames, actions, splits, sizes, and records that cannot be used."""

import json
import os
import pathlib
import pickle

import array_record_sets
import numpy as np
import pytest

from jworld.data.inputs import clips, fitting, formats, items
from jworld.utils.errors import UserError

CUT = clips.CutConfig(fit=fitting.Fit(width=64, height=64), frames=5, fps=15)


def video(number: int, frames: int = 6, height: int = 64, width: int = 64, colors: int = 3) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (frames, height, width, colors), dtype=np.uint8)


def listing(path: pathlib.Path, **options) -> items.Listing:
    given = {"require_captions": False, "frames_fps": 15.0} | options
    return formats.list_items("jasmine", path, options=items.ListOptions(**given))


def read(path: pathlib.Path, **options) -> list[clips.Clip]:
    return [clip for item in listing(path, **options).items for clip in clips.read_clips(item, CUT)]


def test_frames_and_actions_of_all_splits(tmp_path: pathlib.Path) -> None:
    splits = {"train": [video(0), video(1), video(2)], "val": [video(3)], "test": [video(4)]}
    folder = array_record_sets.write_jasmine(tmp_path, splits)
    found = listing(folder)
    assert [(item.name, item.split) for item in found.items] == [
        ("train/data_0000/000000", "train"),
        ("train/data_0000/000001", "train"),
        ("train/data_0001/000000", "train"),
        ("val/data_0000/000000", "val"),
    ]
    assert found.notes == [f"{tmp_path / 'test'} is ignored: a data set has the splits train and val"]
    assert found.facts["frames_size"] == [64, 64]
    assert found.facts["commands"]["names"] == [str(number) for number in range(15)]
    assert set(found.facts["commands"]["low"]) == {-1.0}
    for number, clip in enumerate(read(folder)):
        np.testing.assert_array_equal(clip.frames, video(number)[:5])
        # The action of a frame follows it: before frame 1 it is that of frame 0.
        assert clip.commands is not None
        np.testing.assert_array_equal(clip.commands, np.eye(15)[number + np.arange(4)])
        assert clip.fps == 15


def test_one_file_and_one_split_alone(tmp_path: pathlib.Path) -> None:
    folder = array_record_sets.write_jasmine(tmp_path, {"train": [video(n) for n in range(4)]})
    # Nothing is held out by its folder, so a share is drawn.
    assert {item.split for item in listing(folder).items} <= {"train", "val"}
    for path in (folder / "train", folder / "train/data_0001.array_record"):
        clip = read(path)[-1]
        np.testing.assert_array_equal(clip.frames, video(3)[:5])
        assert clip.commands is not None
        assert clip.commands.shape == (4, 15)


def test_sizes_that_are_not_stored(tmp_path: pathlib.Path) -> None:
    wide = array_record_sets.write_jasmine(tmp_path / "wide", {"train": [video(0, 5, 90, 160)]}, actions=None)
    assert listing(wide).facts["frames_size"] == [160, 90]
    assert "commands" not in listing(wide).facts
    odd = array_record_sets.write_jasmine(tmp_path / "odd", {"train": [video(0, 5, 30, 40)]}, actions=None)
    with pytest.raises(UserError, match="a frame has 3,600 numbers, of which width and height are unknown: give --fra"):
        listing(odd)
    with pytest.raises(UserError, match=r"expected 40x40 with 3 colors or 1: give another --frames-size"):
        listing(odd, frames_size=(40, 40))
    source = listing(odd, frames_size=(40, 30)).items[0].open_video()  # type: ignore[misc]
    np.testing.assert_array_equal(np.stack(list(source.frames())), video(0, 5, 30, 40))
    gray = array_record_sets.write_jasmine(tmp_path / "gray", {"train": [video(0, 5, 30, 40, 1)]}, actions=None)
    source = listing(gray, frames_size=(40, 30)).items[0].open_video()  # type: ignore[misc]
    np.testing.assert_array_equal(np.stack(list(source.frames()))[..., 2], video(0, 5, 30, 40, 1)[..., 0])


class Trap:
    """Object that creates a file when it is unpickled."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_nothing_in_a_record_is_executed(tmp_path: pathlib.Path) -> None:
    opened = tmp_path / "opened"
    record = array_record_sets.jasmine_record(video(0), Trap(opened))
    pickle.loads(record)
    assert opened.exists()
    opened.unlink()
    array_record_sets.write_records(tmp_path / "a.array_record", [record])
    with pytest.raises(UserError, match=r"a\.array_record, record 0: it names pathlib\..*, which no array needs"):
        listing(tmp_path)
    assert not opened.exists()


@pytest.mark.parametrize(
    "record, message",
    [
        (
            array_record_sets.jasmine_record(video(0), raw_video=b"abcde"),
            "raw_video has 5 bytes and sequence_length is",
        ),
        (array_record_sets.jasmine_record(video(0), sequence_length=5), "raw_video has 73,728 bytes"),
        (array_record_sets.jasmine_record(video(0), sequence_length=12), "width and height are unknown"),
        (array_record_sets.jasmine_record(video(0), sequence_length=-6), "sequence_length is -6, expected at least 2"),
        (array_record_sets.jasmine_record(video(0), sequence_length=True), "'sequence_length' is of type bool"),
        (array_record_sets.jasmine_record(video(0), raw_video="text"), "'raw_video' is of type str, expected bytes"),
        (pickle.dumps({"sequence_length": 6}), "'raw_video' is of type NoneType"),
        (pickle.dumps({"raw_video": video(0), "sequence_length": 6}), "'raw_video' is of type StoredArray"),
        (pickle.dumps([1, 2]), "it holds a list"),
        (b"no pickle", "record 0: "),
        (array_record_sets.jasmine_record(video(0))[:-30], "record 0: "),
        (array_record_sets.jasmine_record(video(0), np.arange(5)), r"'actions' has shape \[5\], expected one for each"),
        (array_record_sets.jasmine_record(video(0), np.zeros((6, 2), int)), r"'actions' has shape \[6, 2\]"),
        (array_record_sets.jasmine_record(video(0), np.zeros(6)), "'actions': expected integers, got float64"),
        (array_record_sets.jasmine_record(video(0), ["left"] * 6), "expected an array of integers, got a list"),
        (array_record_sets.jasmine_record(video(0), np.arange(6) + 10), "an action is 15, expected 0 to 14"),
        (array_record_sets.jasmine_record(video(0), np.arange(6) - 1), "an action is -1, expected 0 to 14"),
    ],
)
def test_records_that_cannot_be_used(tmp_path: pathlib.Path, record: bytes, message: str) -> None:
    array_record_sets.write_records(tmp_path / "train/a.array_record", [record])
    (tmp_path / "metadata.json").write_text('{"num_actions": 15}')
    with pytest.raises(UserError, match=message) as error:
        read(tmp_path)
    assert "a.array_record, record 0: " in str(error.value)


def test_the_number_of_actions_is_needed(tmp_path: pathlib.Path) -> None:
    folder = array_record_sets.write_jasmine(tmp_path, {"train": [video(0)]})
    for content, message in (({}, "num_actions is None"), ({"num_actions": 1e9}, "num_actions is 1000000000.0")):
        (folder / "metadata.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            listing(folder)
    (folder / "metadata.json").unlink()
    with pytest.raises(UserError, match=r"metadata\.json is absent"):
        listing(folder)


@pytest.mark.parametrize("wrong", ["pipe", "text", "empty", "half", "folder", "none"])
def test_files_that_cannot_be_read(tmp_path: pathlib.Path, wrong: str) -> None:
    place = array_record_sets.write_records(
        tmp_path / "set/a.array_record", [array_record_sets.jasmine_record(video(0))]
    )
    content = place.read_bytes()
    place.unlink()
    if wrong == "pipe":
        os.mkfifo(place)
    elif wrong == "folder":
        place.mkdir()
    elif wrong != "none":
        place.write_bytes({"text": b"no records" * 10_000, "empty": b"", "half": content[: len(content) // 2]}[wrong])
    with pytest.raises(UserError, match=r"a\.array_record|holds no \.array_record file"):
        listing(tmp_path / "set")


def test_a_frame_rate_is_needed(tmp_path: pathlib.Path) -> None:
    folder = array_record_sets.write_jasmine(tmp_path, {"train": [video(0)]})
    with pytest.raises(UserError, match="the frames have no times: give --frames-fps, or --fps"):
        listing(folder, frames_fps=None)
