"""Episodes of TensorFlow Datasets: images, commands, captions, splits, and data sets that cannot be read."""

import json
import pathlib
from typing import Any

import array_record_sets
import numpy as np
import pytest

from jworld.data.inputs import clips, fitting, formats, items
from jworld.utils.errors import UserError

CUT = clips.CutConfig(fit=fitting.Fit(width=64, height=48), frames=5, fps=5)
FORMS = ("array_record", "tfrecord")


def video(number: int, frames: int = 6) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (frames, 48, 64, 3), dtype=np.uint8)


def make(folder: pathlib.Path, form: str = "tfrecord", **splits: int) -> pathlib.Path:
    """Write a data set with so many episodes per split; numbers continue over the splits."""
    count, content = 0, {}
    for split, size in (splits or {"train": 3, "val": 1}).items():
        content[split] = [(video(count + number), f"take {count + number}") for number in range(size)]
        count += size
    return array_record_sets.write_rlds(folder / "robot" / "1.0.0", content, form=form)


def listing(path: pathlib.Path, **options: Any) -> items.Listing:
    given = {"require_captions": False, "frames_fps": 5.0, "camera": "image"} | options
    return formats.list_items("rlds", path, options=items.ListOptions(**given))


def read(path: pathlib.Path, **options: Any) -> list[clips.Clip]:
    return [clip for item in listing(path, **options).items for clip in clips.read_clips(item, CUT)]


def change(path: pathlib.Path, changes: dict[str, Any]) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("form", FORMS)
def test_images_commands_and_captions(tmp_path: pathlib.Path, form: str) -> None:
    folder = make(tmp_path, form)
    found = listing(folder)
    assert [(item.name, item.split, item.caption) for item in found.items] == [
        ("train-00000/000000", "train", "take 0"),
        ("train-00000/000001", "train", "take 1"),
        ("train-00001/000000", "train", "take 2"),
        ("val-00000/000000", "val", "take 3"),
    ]
    # The last step of an episode, which stores 1000, does not count.
    assert found.facts["commands"] == {
        "feature": "action",
        "names": ["arm/0", "arm/1", "gripper"],
        "low": [0, 0, 0],
        "high": [4, 3, 1],
    }
    for number, clip in enumerate(read(folder)):
        np.testing.assert_array_equal(clip.frames, video(number)[:5])
        steps = np.arange(4)
        expected = np.stack([steps / 2 - 1, np.full(4, 2 * number / 3 - 1), 2 * (steps % 2) - 1], axis=1)
        assert clip.commands is not None
        np.testing.assert_allclose(clip.commands, expected, atol=1e-6)


def test_cameras_and_commands_by_name(tmp_path: pathlib.Path) -> None:
    folder = make(tmp_path)
    wrist = read(folder, camera="observation/wrist_image")[0]
    np.testing.assert_array_equal(wrist.frames, 255 - video(0)[:5])
    # The folder above is enough if it has one version.
    assert listing(folder.parent, commands="action:gripper,arm/0").facts["commands"]["names"] == ["gripper", "arm/0"]
    assert listing(folder, commands="action:arm").facts["commands"]["names"] == ["arm/0", "arm/1"]
    assert listing(folder, commands="action/arm").facts["commands"]["names"] == ["0", "1"]
    assert listing(folder, commands="observation/state").facts["commands"]["low"] == [0, -4]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"camera": ""}, "2 cameras, give one of observation/image, observation/wrist_image as --camera"),
        ({"camera": "depth"}, "--camera is 'depth', give one of"),
        (
            {"commands": "torque"},
            "--commands is 'torque', expected the name of numbers of a step, such as action/arm, ",
        ),
        ({"commands": "action:hip"}, "action has no 'hip', expected some of arm/0, arm/1, gripper"),
        ({"commands": "observation/image"}, "--commands is 'observation/image', expected the name of numbers"),
        ({"frames_fps": None}, "the frames have no times: give --frames-fps, or --fps"),
    ],
)
def test_unknown_names(tmp_path: pathlib.Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        listing(make(tmp_path), **options)


def test_splits_and_files_that_are_absent(tmp_path: pathlib.Path) -> None:
    folder = make(tmp_path, train=4, test=1)
    assert [item.split for item in listing(folder).items] == ["val", *["train"] * 4]
    (folder / "robot-train.tfrecord-00000-of-00002").unlink()
    found = listing(folder)
    assert len(found.items) == 3
    assert found.notes == ["1 of 2 files of the split 'train' are absent"]
    (folder / "robot-train.tfrecord-00001-of-00002").unlink()
    with pytest.raises(UserError, match="is absent, and so are all files of the split 'train'"):
        listing(folder)
    other = make(tmp_path / "other", train=1, val=1, test=1)
    assert listing(other).notes == ["the split 'test' is ignored: a data set has the splits train and val"]
    drawn = make(tmp_path / "drawn", train=1)
    assert len(listing(drawn).items) == 1


@pytest.mark.parametrize(
    "name, changes, message",
    [
        (
            "dataset_info.json",
            {"fileFormat": "riegeli"},
            "fileFormat is 'riegeli' .* expected array_record or tfrecord",
        ),
        ("dataset_info.json", {"splits": {}}, "a list under 'splits'"),
        ("dataset_info.json", {"splits": []}, "holds no videos"),
        ("dataset_info.json", {"splits": [{"name": [1]}]}, "holds no videos"),
        ("dataset_info.json", {"splits": [{"name": "train"}]}, "shardLengths None"),
        ("dataset_info.json", {"splits": [{"name": "train", "shardLengths": ["x"]}]}, r"shardLengths \['x'\]"),
        ("dataset_info.json", {"name": "../robot"}, "expected such as"),
        ("features.json", {"featuresDict": {}}, "lists no feature 'steps' with the features of a step"),
        ("features.json", {"featuresDict": [1]}, "lists no feature 'steps'"),
    ],
)
def test_broken_facts(tmp_path: pathlib.Path, name: str, changes: dict[str, Any], message: str) -> None:
    folder = make(tmp_path)
    change(folder / name, changes)
    with pytest.raises(UserError, match=message):
        listing(folder)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"steps/observation/image": []}, "'action/arm' has 12 numbers, expected 2 for each of 0 steps"),
        ({"steps/observation/image": np.zeros(6)}, "'steps/observation/image' is float_list, expected a bytes_list"),
        ({"steps/observation/image": [b"x"] * 6}, "image 0 of record 0 is not readable"),
        ({"steps/action/arm": np.zeros(11)}, "'action/arm' has 11 numbers, expected 2 for each of 6 steps"),
        ({"steps/action/arm": np.full(12, np.nan)}, "its commands are not finite"),
        ({"steps/action/arm": [b"x"] * 12}, "'steps/action/arm' is bytes_list, expected a float_list or int64_list"),
        ({"steps/language_instruction": [b"\xff"] * 6}, "can't decode byte 0xff"),
        (None, "it holds no example of TensorFlow"),
    ],
)
def test_records_that_cannot_be_used(tmp_path: pathlib.Path, changes: dict[str, Any] | None, message: str) -> None:
    """The others of the data set can be, so that --on-error skip leaves out this one."""
    folder = make(tmp_path, train=2)
    features = array_record_sets.episode(video(0), "take 0", number=0)
    record = b"no example" if changes is None else array_record_sets.example(features | changes)
    good = array_record_sets.example(array_record_sets.episode(video(1), "take 1", number=1))
    array_record_sets.write_records(folder / "robot-train.tfrecord-00000-of-00001", [record, good])
    broken, other = listing(folder).items
    with pytest.raises(UserError, match=message) as error:
        list(clips.read_clips(broken, CUT))
    assert str(error.value).startswith(str(folder / "robot-train.tfrecord-00000-of-00001"))
    assert len(list(clips.read_clips(other, CUT))) == 1


def test_a_file_of_another_length(tmp_path: pathlib.Path) -> None:
    folder = make(tmp_path, train=2)
    good = array_record_sets.example(array_record_sets.episode(video(1), "take 1", number=1))
    array_record_sets.write_records(folder / "robot-train.tfrecord-00000-of-00001", [good])
    with pytest.raises(UserError, match=r"has 1 records, expected 2 by dataset_info\.json: download the file again"):
        listing(folder)


def test_a_folder_of_several_versions(tmp_path: pathlib.Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    with pytest.raises(UserError, match=r"holds 2 files dataset_info\.json, such as those in .* and .*, expected one"):
        listing(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds 0 files dataset_info\.json, expected one"):
        listing(tmp_path / "empty")
