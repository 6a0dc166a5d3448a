"""Listings of every format: names, captions, splits, problems of single items, and refused data sets."""

import dataclasses
import json
import pathlib
import pickle

import numpy as np
import PIL.Image
import pytest
import tiny_videos

from jworld.data.inputs import clips, fitting, formats, items
from jworld.data.recording import episodes
from jworld.utils.errors import UserError

CUT = clips.CutConfig(fit=fitting.Fit(width=16, height=12), frames=9)


def touch(path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def facts(listing: items.Listing) -> dict[str, tuple[str, str | None]]:
    """Return name -> (caption, problem) in the order of the listing."""
    return {item.name: (item.caption, item.problem) for item in listing.items}


def test_videos_and_image_folders_with_text_files(tmp_path):
    for name in ("b.mp4", "a.webm", "sub/c.MOV", "sub/d.mkv"):
        touch(tmp_path / name)
        touch((tmp_path / name).with_suffix(".txt"), f" about {name}\n")
    touch(tmp_path / "frames" / "frame_0.png")
    touch(tmp_path / "frames.txt", "images")
    for name in (".hidden.mp4", ".trash/e.mp4", "notes.pdf", "empty/readme.md"):
        touch(tmp_path / name)
    listing = formats.list_items("videos", tmp_path, options=items.ListOptions(frames_fps=8))
    assert facts(listing) == {
        "a": ("about a.webm", None),
        "b": ("about b.mp4", None),
        "frames": ("images", None),
        "sub/c": ("about sub/c.MOV", None),
        "sub/d": ("about sub/d.mkv", None),
    }
    assert listing.items[2].video == tmp_path / "frames"
    assert listing.items[2].frames_fps == 8
    assert listing.notes == []


@pytest.mark.parametrize(
    "table, text",
    [
        ("captions.json", '{"a.mp4": "one", "sub/b": "two", "z": "lost"}'),
        (
            "captions.json",
            '[{"video": "a", "caption": "one"}, {"video": "sub/b.mp4", "caption": "two", "split": "val"}, '
            '{"video": "z", "caption": ""}]',
        ),
        (
            "captions.jsonl",
            '{"video": "a.mp4", "caption": "one"}\n\n{"video": "sub/b", "caption": "two", "split": "val"}\n'
            '{"video": "z", "caption": ""}\n',
        ),
        ("captions.csv", 'video,caption,split\na.mp4,"one",\nsub/b.mp4,two,val\nz,,\n'),
    ],
)
def test_tables_of_captions(tmp_path, table, text):
    for name in ("a.mp4", "sub/b.mp4", "c.mp4", "d.mp4"):
        touch(tmp_path / name)
    touch(tmp_path / "d.txt", "from its own file")
    touch(tmp_path / table, text)
    listing = formats.list_items("videos", tmp_path, val_share=0)
    found = facts(listing)
    assert list(found) == ["a", "c", "d", "sub/b"]
    assert [found[name][0] for name in found] == ["one", "", "from its own file", "two"]
    assert "c.mp4 has no caption" in found["c"][1]
    assert "--allow-missing-captions" in found["c"][1]
    assert listing.items[3].split == ("val" if "val" in text else "train")
    assert len(listing.notes) == 1
    assert "the first is 'z'" in listing.notes[0]
    without = formats.list_items("videos", tmp_path, options=items.ListOptions(require_captions=False))
    assert facts(without)["c"] == ("", None)


@pytest.mark.parametrize(
    "files, message",
    [
        ({}, "holds no videos"),
        ({"a.mp4": "", "captions.json": "{}", "captions.csv": ""}, r"has captions\.json and captions\.csv"),
        ({"a.mp4": "", "captions.jsonl": "no json"}, r"captions\.jsonl is not JSON in every line"),
        ({"a.mp4": "", "captions.json": "3"}, "holds a int, expected an object or a list"),
        ({"a.mp4": "", "captions.csv": "file,text\na.mp4,one\n"}, "row 0 .* expected the keys video and caption"),
        ({"a.mp4": "", "captions.csv": "video,caption\na,1\na,2\n"}, "row 1 is the second one for 'a'"),
    ],
)
def test_folders_that_cannot_be_listed(tmp_path, files, message):
    for name, text in files.items():
        touch(tmp_path / name, text)
    with pytest.raises(UserError, match=message):
        formats.list_items("videos", tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        formats.list_items("videos", tmp_path / "absent")
    with pytest.raises(
        UserError, match="format is 'avi', expected one of episodes, videos, worldplay, cosmos, bridge, matrix"
    ):
        formats.list_items("avi", tmp_path)


class Trap:
    """Object that creates a file when it is unpickled."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (self.path,))


def test_cosmos(tmp_path):
    opened = tmp_path / "opened"
    trap = pickle.dumps(Trap(opened))
    pickle.loads(trap)
    assert opened.exists()
    opened.unlink()
    for name in ("b", "a", "c"):
        touch(tmp_path / "videos" / f"{name}.mp4")
        touch(tmp_path / "metas" / f"{name}.txt", f"caption {name}\n")
    (tmp_path / "metas" / "c.txt").unlink()
    (tmp_path / "t5_xxl").mkdir()
    (tmp_path / "t5_xxl" / "a.pickle").write_bytes(trap)
    listing = formats.list_items("cosmos", tmp_path)
    found = facts(listing)
    assert list(found) == ["a", "b", "c"]
    assert found["a"] == ("caption a", None)
    assert "metas/c.txt is absent, expected the caption of c.mp4" in found["c"][1]
    assert len(listing.notes) == 1
    assert "--text-encoder" in listing.notes[0]
    assert not opened.exists()
    with pytest.raises(UserError, match=r"expected videos/X\.mp4"):
        formats.list_items("cosmos", tmp_path / "videos")


def annotation(path, **changes) -> None:
    facts = {"state": [[0.0] * 7] * 3, "continuous_gripper_state": [1.0] * 3, "videos": [{"video_path": "v/a.mp4"}]}
    touch(path, json.dumps(facts | {"texts": ["open the drawer"]} | changes))


def test_bridge_lists_both_splits(tmp_path):
    annotation(tmp_path / "annotation" / "train" / "7.json")
    annotation(tmp_path / "annotation" / "val" / "7.json", texts=[])
    annotation(tmp_path / "annotation" / "test" / "7.json")
    annotation(tmp_path / "annotation" / "train" / "8.json", videos=[])
    touch(tmp_path / "annotation" / "train" / "9.json", "{")
    listing = formats.list_items("bridge", tmp_path, options=items.ListOptions(root=tmp_path / "media"))
    train, novideo, broken, val = listing.items
    assert (train.name, train.split, train.caption) == ("train/7", "train", "open the drawer")
    assert train.video == tmp_path / "media" / "v" / "a.mp4"
    assert train.read_tracks(3).hand.shape == (3, 7)
    assert (val.name, val.split) == ("val/7", "val")
    assert "has no caption" in val.problem
    assert "'videos' has no text under 'video_path'" in novideo.problem
    assert "is not readable JSON" in broken.problem
    assert "test is ignored" in listing.notes[0]
    with pytest.raises(UserError, match=r"annotation holds no train/\*\.json"):
        formats.list_items("bridge", tmp_path / "annotation")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"state": [[0.0] * 7] * 2}, "has 2 states, the video decodes to 3 frames"),
        ({"continuous_gripper_state": [1.0]}, "has 1 states of the gripper"),
        ({"state": [[0.0] * 5] * 3}, r"state has shape \[3, 5\].*rows of 6 or more"),
        ({"state": [[0.0] * 7, [0.0]]}, "'state' is missing or has entries that are not numbers"),
        ({"continuous_gripper_state": None}, "'continuous_gripper_state' is"),
        ({"state": [[float("nan")] * 7] * 3}, r"'state' is \[\[nan.*expected a list of finite numbers"),
    ],
)
def test_bridge_states_that_do_not_fit(tmp_path, changes, message):
    annotation(tmp_path / "annotation" / "train" / "7.json", **changes)
    (item,) = formats.list_items("bridge", tmp_path).items
    with pytest.raises(UserError, match=message):
        item.read_tracks(3)


def matrix_index(path, *entries) -> None:
    (path / "index.json").write_text(json.dumps({"list": entries}))


def test_matrix_lists_and_aligns_controls(tmp_path):
    tiny_videos.write(tmp_path / "clips" / "drive.mp4", fps=20)
    tokens = ["D"] * 10 + ["DL"] * 6 + ["N"] * 4
    matrix_index(
        tmp_path,
        {"path": "clips/drive.mp4", "caption": "a road", "control_signal_seq": ",".join(tokens), "valid_frame_idx": 4},
        {"path": "clips/drive.mp4", "caption": "a road again"},
    )
    listing = formats.list_items("matrix", tmp_path / "index.json")
    assert facts(listing) == {"clips/drive": ("a road again", None), "clips/drive+000004": ("a road", None)}
    plain, driven = listing.items
    (clip,) = clips.read_clips(driven, dataclasses.replace(CUT, fps=10))
    assert tiny_videos.numbers(clip.frames) == list(range(4, 21, 2))
    # The sequence has 20 tokens for 30 frames: the last one is held.
    expected = ["D", "D", "D", "DL", "DL", "DL", "N", "N", "N"]
    assert clip.controls == items.Controls(tuple(expected))
    assert clip.w2c is None
    assert clip.intrinsics is None
    assert all(clip.controls is None for clip in clips.read_clips(plain, CUT))


@pytest.mark.parametrize(
    "entry, message",
    [
        ({"caption": "x"}, "entry 0 has no text under the key 'path'"),
        ("text", "entry 0 has no text under the key 'path'"),
        ({"path": "a.mp4", "caption": "x", "valid_frame_idx": "3"}, r"valid_frame_idx of a\.mp4 is '3'"),
        ({"path": "a.mp4", "caption": "x", "control_signal_seq": "D,DX"}, "has the token 'DX', expected one of D, DL"),
        ({"path": "a.mp4", "caption": "x", "control_signal_seq": ",".join("D" * 31)}, "31 control tokens .* 30 frames"),
        ({"path": "b.mp4", "caption": "x"}, r"b\.mp4 is absent"),
        ({"path": "a.mp4", "caption": "x", "split": "test"}, "split is 'test', expected one of train, val"),
        ({"path": "a.mp4", "caption": " "}, r"a\.mp4 has no caption"),
    ],
)
def test_matrix_entries_that_are_refused(tmp_path, entry, message):
    tiny_videos.write(tmp_path / "a.mp4")
    matrix_index(tmp_path, entry)
    (item,) = formats.list_items("matrix", tmp_path).items
    with pytest.raises(UserError, match=message):
        list(clips.read_clips(item, CUT))


def test_invalid_index_files_are_refused(tmp_path):
    for name, message in (("matrix", "has no list under the key 'list'"), ("worldplay", "holds a dict, expected a")):
        with pytest.raises(UserError, match=r"index\.json is absent"):
            formats.list_items(name, tmp_path / "index.json")
        touch(tmp_path / "index.json", "{}")
        with pytest.raises(UserError, match=message):
            formats.list_items(name, tmp_path)
        (tmp_path / "index.json").unlink()


def test_root_of_relative_paths(tmp_path):
    touch(tmp_path / "lists" / "index.json", json.dumps({"list": [{"path": "a.mp4", "caption": "x"}]}))
    options = items.ListOptions(root=tmp_path / "data")
    (item,) = formats.list_items("matrix", tmp_path / "lists", options=options).items
    assert item.video == tmp_path / "data" / "a.mp4"


def test_two_videos_with_the_same_name_are_refused(tmp_path):
    for name in ("a.mp4", "a.webm", "b.mp4"):
        touch(tmp_path / name)
        touch((tmp_path / name).with_suffix(".txt"), "text")
    listing = formats.list_items("videos", tmp_path)
    assert [(item.name, item.problem is None) for item in listing.items] == [("a", False), ("a", False), ("b", True)]
    assert all("2 videos have the name 'a'" in item.problem and "a.webm" in item.problem for item in listing.items[:2])


def make_items(count: int) -> list[items.Item]:
    return [items.Item(name=f"item {i}", video=None) for i in range(count)]


def test_splits_by_name():
    drawn = items.with_splits(make_items(2000), 0.1)
    val = {item.name for item in drawn if item.split == "val"}
    assert 150 < len(val) < 250
    assert {item.name for item in items.with_splits(make_items(4000), 0.1)[:2000] if item.split == "val"} == val
    assert val < {item.name for item in items.with_splits(make_items(2000), 0.2) if item.split == "val"}
    given = dataclasses.replace(make_items(1)[0], split="val")
    assert items.with_splits([given], 0)[0].split == "val"
    assert {item.split for item in items.with_splits(make_items(50), 0)} == {"train"}
    assert {item.split for item in items.with_splits(make_items(50), 1)} == {"val"}
    with pytest.raises(UserError, match="validation clips is 5"):
        items.with_splits([], 5)


def test_a_bad_item_does_not_stop_the_others(tmp_path):
    for name in ("a", "broken", "short", "z"):
        tiny_videos.write(tmp_path / f"{name}.mp4", tiny_videos.numbered(4 if name == "short" else 18))
        touch(tmp_path / f"{name}.txt", name)
    path = tmp_path / "broken.mp4"
    path.write_bytes(path.read_bytes()[:-200])
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(9):
        PIL.Image.fromarray(tiny_videos.numbered()[index]).save(folder / f"{index}.png")
    made, failed = [], {}
    for item in formats.list_items("videos", tmp_path, options=items.ListOptions(frames_fps=10)).items:
        try:
            made += [clip.name for clip in clips.read_clips(item, CUT)]
        except UserError as error:
            failed[item.name] = str(error)
    assert made == ["a@000000", "a@000009", "z@000000", "z@000009"]
    assert list(failed) == ["broken", "images", "short"]
    assert "is damaged" in failed["broken"]
    assert "no caption" in failed["images"]
    assert "a clip needs 9" in failed["short"]
    assert all(". " not in text and "\n" not in text for text in failed.values())


def test_episodes_are_listed_from_their_manifest(tmp_path):
    entries = [
        {"name": name, "split": split, "frames": 9, "caption": "a path"}
        for name, split in (("b", "train"), ("a", "val"), ("c", "test"))
    ]
    episodes.write_manifest(tmp_path, source="rooms", seed=0, fps=10, width=32, height=24, episodes=entries)
    listed = formats.list_items("episodes", tmp_path, val_share=1).items
    assert [(item.name, item.split) for item in listed] == [("a", "val"), ("b", "train"), ("c", "test")]
    assert [item.problem is None for item in listed] == [True, True, False]
    assert listed[0].video == tmp_path / "a" / "video.mp4"
    with pytest.raises(UserError, match=r"manifest\.json is absent"):
        formats.list_items("episodes", tmp_path / "a")


def test_image_folders_become_clips(tmp_path):
    folder = tmp_path / "path"
    folder.mkdir()
    for index, frame in enumerate(tiny_videos.numbered(12)):
        PIL.Image.fromarray(frame).save(folder / f"{index}.png")
    touch(tmp_path / "path.txt", "a path")
    (item,) = formats.list_items("videos", tmp_path, options=items.ListOptions(frames_fps=30)).items
    (clip,) = clips.read_clips(item, dataclasses.replace(CUT, fps=15, frames=5))
    assert tiny_videos.numbers(clip.frames) == [0, 2, 4, 6, 8]
    np.testing.assert_array_equal(clip.frames[1], np.full((12, 16, 3), 16))
