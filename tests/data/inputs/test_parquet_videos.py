"""Videos in tables: the same frames as those of the files, splits by the tables' names, and tables without videos."""

import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import tiny_videos
from pyarrow import parquet

from jworld.data.inputs import clips, fitting, formats, items
from jworld.utils.errors import UserError

CUT = clips.CutConfig(fit=fitting.Fit(width=16, height=12), frames=5)


@pytest.fixture
def videos(tmp_path: pathlib.Path) -> list[pathlib.Path]:
    places = [tmp_path / f"files/{number}.mp4" for number in range(3)]
    for number, place in enumerate(places):
        tiny_videos.write(place, tiny_videos.numbered(5) + np.uint8(number))
    return places


def write(place: pathlib.Path, columns: dict[str, Any], **options: Any) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.table(columns), place, **options)


def frames(item: items.Item) -> np.ndarray:
    (clip,) = clips.read_clips(item, CUT)
    return clip.frames


@pytest.mark.parametrize("kind", ["objects", "bytes"])
def test_frames_are_those_of_the_files(kind: str, videos: list[pathlib.Path], tmp_path: pathlib.Path) -> None:
    cells: list[Any] = [place.read_bytes() for place in videos]
    if kind == "objects":
        cells = [{"bytes": data, "path": "lost.mp4"} for data in cells]
    columns = {"video": cells, "caption": ["a", "b", "c"], "fps": [10, 10, 10]}
    write(tmp_path / "set/data/train-00000-of-00001.parquet", columns, row_group_size=2)
    write(tmp_path / "set/data/test-00000-of-00001.parquet", {"video": cells[:1], "caption": ["d"]})
    listing = formats.list_items("parquet", tmp_path / "set")
    assert [(item.name.rpartition("/")[2], item.caption, item.split) for item in listing.items] == [
        ("000000", "d", "val"),
        ("000000", "a", "train"),
        ("000001", "b", "train"),
        ("000002", "c", "train"),
    ]
    files = formats.list_items("videos", tmp_path / "files", options=items.ListOptions(require_captions=False))
    for stored, file in zip(listing.items[1:], files.items, strict=True):
        np.testing.assert_array_equal(frames(stored), frames(file))


def test_a_wrong_cell_is_named(videos: list[pathlib.Path], tmp_path: pathlib.Path) -> None:
    cells = [videos[0].read_bytes()[:100], None, b""]
    write(tmp_path / "x.parquet", {"clip": pa.array(cells, pa.binary()), "text": ["a", "b", "c"]})
    listing = formats.list_items("parquet", tmp_path / "x.parquet")
    for number, item in enumerate(listing.items):
        with pytest.raises(UserError, match=rf"x\.parquet/row {number}\b"):
            frames(item)


@pytest.mark.parametrize("columns", [{"caption": ["a"]}, {"a": [b"x"], "b": [b"y"]}])
def test_tables_without_one_column_of_videos(columns: dict[str, Any], tmp_path: pathlib.Path) -> None:
    write(tmp_path / "x.parquet", columns)
    with pytest.raises(UserError, match="hold bytes, expected one of encoded videos"):
        formats.list_items("parquet", tmp_path)
