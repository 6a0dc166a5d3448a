"""Limits on files of strangers: images, videos, archives, tables and rows, and names that leave their folder."""

import io
import json
import pathlib
import tarfile

import numpy as np
import PIL.Image
import pyarrow
import pytest
import tiny_videos
from mistakes import wrong
from pyarrow import parquet

from jworld.data import json_rows, media, tables
from jworld.data.conversations import captions, formats, image_files
from jworld.data.inputs import video
from jworld.utils import files, limits
from jworld.utils.errors import UserError


def png(width: int = 4, height: int = 3) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(stream, "png")
    return stream.getvalue()


def test_images_of_many_pixels(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(wrong.png(30_000, 30_000))
    with pytest.raises(UserError, match=r"a\.png cannot be read: is not a readable image \(.*900000000 pixels"):
        media.read_start(tmp_path / "a.png")
    # Pillow would read this one, with a warning.
    (tmp_path / "b.png").write_bytes(wrong.png(12_000, 12_000))
    with pytest.raises(UserError, match="12000x12000 pixels, at most 134,217,728 are read"):
        media.read_start(tmp_path / "b.png")
    with pytest.raises(ValueError, match="12000x12000 pixels"):
        image_files.read({"file": "b.png"}, tmp_path)
    monkeypatch.setattr(limits, "IMAGE_BYTES", 10)
    (tmp_path / "c.tar").write_bytes(png())
    with pytest.raises(ValueError, match="it has 11 bytes, at most 10"):
        image_files.read({"tar": "c.tar", "offset": 0, "size": 1 << 40}, tmp_path)


def test_videos_of_many_pixels_or_frames(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_videos.write(tmp_path / "a.mp4", np.zeros((5, 48, 64, 3), np.uint8))
    assert video.open_video(tmp_path / "a.mp4").size == (64, 48)
    monkeypatch.setattr(limits, "VIDEO_FRAMES", 4)
    with pytest.raises(UserError, match=r"holds 5 frames, expected .* at most 4"):
        video.open_video(tmp_path / "a.mp4")
    monkeypatch.setattr(limits, "IMAGE_PIXELS", 64 * 48 - 1)
    with pytest.raises(UserError, match="is damaged or not a video"):
        video.open_video(tmp_path / "a.mp4")


def test_tar_archives(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode, name in (("w", "plain.tar"), ("w:gz", "packed.tar")):
        with tarfile.open(tmp_path / name, mode) as archive:
            for member, content in (("a.png", png()), ("a.txt", b"a caption")):
                entry = tarfile.TarInfo(member)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    ((_, caption, place),) = captions.read(str(tmp_path / "plain.tar"), tmp_path)
    assert caption == "a caption"
    assert image_files.read(place or {}, tmp_path).size == (4, 3)
    with pytest.raises(UserError, match="not a readable tar archive without compression"):
        list(captions.read(str(tmp_path / "packed.tar"), tmp_path))
    monkeypatch.setattr(limits, "ROW_BYTES", 8)
    with pytest.raises(UserError, match=r"'a\.txt' has more than 8 bytes"):
        list(captions.read(str(tmp_path / "plain.tar"), tmp_path))


def test_tables(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"text": [f"caption {i}" * 20 for i in range(50)]})
    parquet.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
    assert len(list(tables.rows(path, ["text"]))) == 50
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(b"caption 30") + 3] ^= 1
    (tmp_path / "b.parquet").write_bytes(damaged)
    with pytest.raises(UserError, match=r"b\.parquet: row group 0 is damaged \(.*CRC"):
        list(tables.rows(tmp_path / "b.parquet", ["text"]))
    for name, value in (("PARQUET_GROUP_ROWS", 49), ("PARQUET_GROUP_BYTES", 100)):
        with monkeypatch.context() as patch:
            patch.setattr(limits, name, value)
            (tmp_path / f"{name}.parquet").write_bytes(path.read_bytes())
            with pytest.raises(UserError, match=r"row group 0 has 50 rows of [\d,]+ bytes, expected at most"):
                tables.columns(tmp_path / f"{name}.parquet")


def test_rows_and_texts(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROW_BYTES", 64)
    for content in (json.dumps([{"a": 1}, {"a": "b" * 99}]), '{"a": 1}\n' + json.dumps({"a": "b" * 99})):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(UserError, match="a row has more than 64 characters"):
            list(json_rows.read(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match=r"a\.json is not readable JSON"):
        list(json_rows.read(tmp_path / "a.json"))
    with pytest.raises(UserError, match="has more than 100 bytes"):
        files.read_json(tmp_path / "a.json", limit=100)
    with pytest.raises(UserError, match="has more than 1,000 bytes"):
        files.read_bytes(tmp_path / "a.json", limit=1000)
    with pytest.raises(UserError, match="/dev/zero is a pipe, a socket or a device, expected a file"):
        files.read_bytes("/dev/zero", limit=1000)


@pytest.mark.parametrize("name", ["../secret.png", "a/../../secret.png", "/secret.png", "{}/../secret.png"])
def test_names_that_leave_the_folder_of_the_images(tmp_path: pathlib.Path, name: str) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(png())
    turns = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "That."}]
    rows = [{"image": each, "conversations": turns} for each in (name.format(images), "a.png", str(images / "a.png"))]
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    config = formats.SetConfig(format="llava", path=str(tmp_path / "chat.json"), images=str(images))
    refused, *good = formats.read(config)
    assert "is outside of the folder" in refused.problem
    assert [row.places for row in good] == [({"file": str(images / "a.png")},)] * 2
    with pytest.raises(ValueError, match="is outside of the folder"):
        image_files.open_value({"path": name.format(images)}, images)
