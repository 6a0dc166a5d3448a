"""Videos in tar archives: the same frames as those of unpacked files, captions, and archives that cannot be read."""

import gzip
import json
import os
import pathlib
import tarfile

import numpy as np
import pytest
import tiny_videos

from jworld.data.inputs import clips, fitting, formats, items
from jworld.utils.errors import UserError

CUT = clips.CutConfig(fit=fitting.Fit(width=16, height=12), frames=5)


@pytest.fixture
def unpacked(tmp_path: pathlib.Path) -> pathlib.Path:
    """Make a folder of three videos with captions, one of them in a JSON file."""
    folder = tmp_path / "files"
    for number, name in enumerate(("a", "b", "sub/d")):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        tiny_videos.write(place.with_suffix(".mp4"), tiny_videos.numbered(5)[:, ::-1] + np.uint8(number))
    (folder / "a.txt").write_text("a red room")
    (folder / "b.json").write_text(json.dumps({"width": 16, "text": "two, of a kind"}))
    (folder / "sub/d.json").write_text(json.dumps({"caption": "not this"}))
    (folder / "sub/d.txt").write_text("text: [4]")
    return folder


def pack(folder: pathlib.Path, place: pathlib.Path, kind: int = tarfile.GNU_FORMAT) -> pathlib.Path:
    """Write all files of a folder as one archive, sorted by name as webdataset does."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(place, "w:", format=kind) as archive:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            archive.add(file, file.relative_to(folder).as_posix())
    return place


def frames(item: items.Item) -> np.ndarray:
    (clip,) = clips.read_clips(item, CUT)
    return clip.frames


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_frames_are_those_of_the_files(unpacked: pathlib.Path, kind: int, tmp_path: pathlib.Path) -> None:
    shards = tmp_path / "set, with: names"
    pack(unpacked, shards / "train/000000.tar", kind)
    listing = formats.list_items("webdataset", shards)
    assert {item.name: item.caption for item in listing.items} == {
        "train/000000/a": "a red room",
        "train/000000/b": "two, of a kind",
        "train/000000/sub/d": "text: [4]",
    }
    files = formats.list_items("videos", unpacked, options=items.ListOptions(require_captions=False))
    for packed, file in zip(listing.items, files.items, strict=True):
        np.testing.assert_array_equal(frames(packed), frames(file))
    # One archive alone is a data set, too.
    assert [item.name for item in formats.list_items("webdataset", shards / "train/000000.tar").items] == [
        "000000/a",
        "000000/b",
        "000000/sub/d",
    ]


def test_samples_without_a_video_are_counted(unpacked: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (unpacked / "lonely.txt").write_text("no video")
    listing = formats.list_items("webdataset", pack(unpacked, tmp_path / "x.tar"))
    assert len(listing.items) == 3
    assert any(note.startswith("1 samples of ") for note in listing.notes)


def test_a_damaged_video_names_archive_and_file(unpacked: pathlib.Path, tmp_path: pathlib.Path) -> None:
    video = unpacked / "a.mp4"
    video.write_bytes(video.read_bytes()[:200])
    item = formats.list_items("webdataset", pack(unpacked, tmp_path / "x.tar")).items[0]
    with pytest.raises(UserError, match=r"x\.tar/a\.mp4"):
        frames(item)


@pytest.mark.parametrize("wrong", ["packed", "cut", "pipe", "text", "none"])
def test_archives_that_cannot_be_read(unpacked: pathlib.Path, wrong: str, tmp_path: pathlib.Path) -> None:
    place = pack(unpacked, tmp_path / "set/x.tar")
    content = place.read_bytes()
    place.unlink()
    if wrong == "packed":
        place.write_bytes(gzip.compress(content))
    elif wrong == "cut":
        place.write_bytes(content[: len(content) // 2])
    elif wrong == "pipe":
        os.mkfifo(place)
    elif wrong == "text":
        place.write_text("no archive" * 100)
    with pytest.raises(UserError, match=r"x\.tar|holds no \.tar file"):
        formats.list_items("webdataset", place.parent)
