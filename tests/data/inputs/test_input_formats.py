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


def own_notes(listing: items.Listing) -> list[str]:
    """Return the notes of the format; that nothing is held out is noted for every format."""
    return [note for note in listing.notes if "is held out" not in note]


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
    assert own_notes(listing) == []


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
    assert len(own_notes(listing)) == 1
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
    with pytest.raises(UserError, match=f"format is 'avi', expected one of {', '.join(formats.FORMATS)}"):
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
    assert len(own_notes(listing)) == 1
    assert "--text-encoder" in listing.notes[0]
    assert own_notes(formats.list_items("cosmos", tmp_path, options=items.ListOptions(stored_text=True))) == []
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
    assert "is not valid JSON" in broken.problem
    assert "test is ignored" in listing.notes[0]
    with pytest.raises(UserError, match=r"holds no annotation/train/\*\.json, .* or annotations/\*\.json"):
        formats.list_items("bridge", tmp_path / "annotation")


def test_bridge_without_splits_as_in_the_guide(tmp_path):
    """annotations/*.json, whose splits are drawn by their names."""
    for i in range(12):
        annotation(tmp_path / "annotations" / f"{i}.json", texts="open the drawer" if i else None)
    annotation(tmp_path / "annotations" / "bad.json", texts=[3])
    listing = formats.list_items("bridge", tmp_path, val_share=0.5).items
    assert sorted(item.name for item in listing) == sorted([*map(str, range(12)), "bad"])
    assert {item.split for item in listing} == {"train", "val"}
    by_name = {item.name: item for item in listing}
    assert by_name["3"].caption == "open the drawer"
    assert by_name["3"].read_tracks(3).hand.shape == (3, 7)
    assert "0.json" in str(by_name["0"].hand)
    assert "has no caption" in by_name["0"].problem
    assert "bad.json: 'texts' is [3], expected a list of captions" in by_name["bad"].problem
    annotation(tmp_path / "annotation" / "train" / "7.json")
    with pytest.raises(UserError, match="recordings in annotation and in annotations, expected one of them"):
        formats.list_items("bridge", tmp_path)


def test_deep_json_and_pointers_are_refused(tmp_path):
    touch(tmp_path / "index.json", "[" * 100_000)
    with pytest.raises(UserError, match=r"index\.json is not valid JSON"):
        formats.list_items("matrix", tmp_path)
    touch(tmp_path / "index.json", "version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UserError, match=r"index\.json is a Git LFS pointer"):
        formats.list_items("worldplay", tmp_path)


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
        ({"path": "a.mp4", "caption": "x", "valid_frame_idx": "3"}, r"\(a\.mp4\): 'valid_frame_idx' is '3', expected"),
        ({"path": "a.mp4", "caption": "x", "valid_frame_idx": -1}, "'valid_frame_idx' is -1, expected a frame number"),
        ({"path": "a.mp4", "caption": "x", "valid_frame_idx": float("nan")}, "'valid_frame_idx' is nan"),
        ({"path": "a.mp4", "caption": "x", "valid_frame_idx": True}, "'valid_frame_idx' is True"),
        ({"path": "a.mp4", "caption": "x", "control_signal_seq": "D,DX"}, "has the token 'DX', expected one of D, DL"),
        ({"path": "a.mp4", "caption": "x", "control_signal_seq": ["D", 3]}, r"'control_signal_seq' is \['D', 3\], exp"),
        ({"path": "a.mp4", "caption": "x", "control_signal_seq": 7}, "'control_signal_seq' is 7, expected tokens"),
        ({"path": "a.mp4", "caption": "x", "control_signal_seq": {"0": "D"}}, r"'control_signal_seq' is \{'0': 'D'\}"),
        ({"path": "a.mp4", "caption": "x", "control_signal_seq": "D,,D"}, "has the token '', expected one of D"),
        ({"path": "a.mp4", "caption": ["x"]}, r"entry 0 \(a\.mp4\): 'caption' is \['x'\], expected a text"),
        ({"path": "a.mp4", "caption": "x", "split": 1}, "'split' is 1, expected a text"),
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


def test_matrix_rows_as_the_original_reads_them(tmp_path):
    """Lists of tokens, tokens beyond the end, late starts, `10.0` as an index, null, and a file listed twice."""
    tiny_videos.write(tmp_path / "a.mp4", fps=10)
    tokens = ["D"] * 10 + ["DL"] * 10 + ["N"] * 20
    row = {"path": "a.mp4", "caption": "x"}
    matrix_index(
        tmp_path,
        row | {"control_signal_seq": tokens, "valid_frame_idx": 10.0},
        row | {"control_signal_seq": ",".join(tokens) + ",", "valid_frame_idx": 28},
        row | {"control_signal_seq": " D , DL", "valid_frame_idx": 40, "caption": "late"},
        row | {"control_signal_seq": None, "valid_frame_idx": None},
        row | {"caption": "y"},
    )
    listing = formats.list_items("matrix", tmp_path)
    found = {item.name: list(clips.read_clips(item, dataclasses.replace(CUT, fps=5))) for item in listing.items}
    assert list(found) == ["a", "a#2", "a+000010", "a+000028", "a+000040"]
    assert [item.caption for item in listing.items] == ["x", "y", "x", "x", "late"]
    frames = {name: tiny_videos.numbers(part[0].frames) for name, part in found.items()}
    assert frames["a+000010"] == list(range(10, 27, 2))
    # Moved back to the latest start from which a clip fits.
    assert frames["a+000028"] == frames["a+000040"] == list(range(13, 30, 2))
    assert found["a"][0].controls is found["a#2"][0].controls is None
    assert found["a+000010"][0].controls.words == ("DL",) * 5 + ("N",) * 4
    assert found["a+000028"][0].controls.words == tuple(tokens[13:30:2])
    assert found["a+000040"][0].controls.words == ("DL",) * 9


def test_short_videos_can_be_stretched_as_in_the_original(tmp_path):
    tiny_videos.write(tmp_path / "a.mp4", tiny_videos.numbered(7), fps=10)
    matrix_index(tmp_path, {"path": "a.mp4", "caption": "x", "control_signal_seq": "D,D,D,DL,N,N,N"})
    (item,) = formats.list_items("matrix", tmp_path).items
    with pytest.raises(UserError, match="a clip needs 9: remove the video, give a smaller --frames, or --short-videos"):
        list(clips.read_clips(item, dataclasses.replace(CUT, fps=10)))
    (clip,) = clips.read_clips(item, dataclasses.replace(CUT, fps=10, short_videos="stretch"))
    expected = np.round(np.linspace(0, 6, 9)).astype(int)
    assert tiny_videos.numbers(clip.frames) == expected.tolist()
    assert clip.controls.words == tuple(np.array(["D", "D", "D", "DL", "N", "N", "N"])[expected])


def test_tokens_per_latent_are_warned_about(tmp_path, capsys):
    tiny_videos.write(tmp_path / "a.mp4", fps=10)
    matrix_index(tmp_path, {"path": "a.mp4", "caption": "x", "control_signal_seq": "D,DL,N,N,N,N,N,N"})
    (item,) = formats.list_items("matrix", tmp_path).items
    (clip, *_) = clips.read_clips(item, CUT)
    assert clip.controls.words[:3] == ("D", "DL", "N")
    assert "has 8 tokens for 30 frames, expected one per video frame; the last one is held" in capsys.readouterr().err


def test_keys_that_are_not_read_are_noted(tmp_path):
    matrix_index(tmp_path, {"path": "a.mp4", "caption": "x", "control_signals": "D"}, {"path": "b.mp4", "weight": 2})
    (note,) = own_notes(formats.list_items("matrix", tmp_path))
    assert (
        "the keys 'control_signals', 'weight' are not read; this format has path, caption, control_signal_seq" in note
    )
    entry = {"video_path": "a.mp4", "pose_path": "a.json", "caption": "x", "action_path": ["a.json"]}
    touch(tmp_path / "w" / "index.json", json.dumps([entry, {**entry, "action_path": None}]))
    listing = formats.list_items("worldplay", tmp_path / "w")
    assert own_notes(listing) == []
    assert "entry 0: 'action_path' is ['a.json'], expected a text" in listing.items[0].problem
    assert listing.items[1].problem is None


def test_one_prompt_for_videos_without_captions(tmp_path):
    for name in "ab":
        touch(tmp_path / "videos" / f"{name}.mp4")
        touch(tmp_path / f"{name}.mp4")
    touch(tmp_path / "metas" / "a.txt", "its own")
    touch(tmp_path / "a.txt", "its own")
    options = items.ListOptions(prompt=" A video of sks teal robot. ")
    expected = {"a": ("its own", None), "b": ("A video of sks teal robot.", None)}
    assert facts(formats.list_items("cosmos", tmp_path, options=options)) == expected
    (tmp_path / "videos").rename(tmp_path / "v")
    found = facts(formats.list_items("videos", tmp_path, options=options))
    assert {name: found[name] for name in "ab"} == expected
    with pytest.raises(UserError, match="give --prompt TEXT for all videos without a caption"):
        list(clips.read_clips(formats.list_items("videos", tmp_path).items[1], CUT))


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
