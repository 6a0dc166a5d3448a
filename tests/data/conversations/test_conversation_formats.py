"""Readers of published conversation formats, tested on small files; unusable rows carry their problem."""

import io
import json
import pathlib
import tarfile
from typing import Any

import PIL.Image
import pyarrow
import pytest
from pyarrow import parquet

from jworld.data import json_rows
from jworld.data.conversations import formats, image_files, spatial
from jworld.utils.errors import UserError

COLORS = ((250, 10, 10), (10, 250, 10), (10, 10, 250))


def png(color: tuple[int, int, int]) -> bytes:
    file = io.BytesIO()
    PIL.Image.new("RGB", (12, 8), color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "images").mkdir()
    for number, color in enumerate(COLORS):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(color))
    return tmp_path


def rows(folder: pathlib.Path, format: str, data: Any, **options: Any) -> list[formats.Conversation]:
    path = folder / "data.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    config = formats.SetConfig(format=format, path=str(path), images=str(folder / "images"), **options)
    return list(formats.read(config))


def turns(row: formats.Conversation) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in row.turns]


def pixel(row: formats.Conversation) -> tuple[int, ...]:
    (place,) = row.places
    return image_files.read(place, pathlib.Path("/nowhere")).getpixel((5, 4))  # type: ignore[return-value]


def test_llava(folder: pathlib.Path) -> None:
    talk = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A wall."},
        {"from": "human", "value": "Which color?"},
        {"from": "gpt", "value": "Red."},
    ]
    data = [
        {"id": "a", "image": "0.png", "conversations": talk},
        {"id": "b", "image": ["1.png", "2.png"], "conversations": [{**talk[0], "value": "Which?"}, talk[1]]},
        {"id": "c", "image": "0.png", "conversations": [{"from": "robot", "value": ""}]},
        {"id": "d", "image": "0.png"},
    ]
    found = rows(folder, "llava", data)
    assert turns(found[0]) == [
        ("user", "<image>\nWhat is it?"),
        ("model", "A wall."),
        ("user", "Which color?"),
        ("model", "Red."),
    ]
    assert pixel(found[0]) == COLORS[0]
    assert [(len(row.places), row.single_turn) for row in found[:2]] == [(1, False), (2, True)]
    assert [row.problem for row in found] == [
        "",
        "",
        "turn 1 is from 'robot', expected one of human, user, gpt, assistant, model, system",
        "it has no conversations or messages",
    ]
    lines = "\n".join(map(json.dumps, data[:2]))
    assert rows(folder, "llava", lines) == found[:2]
    assert rows(folder, "llava", data, limit=1) == found[:1]


def test_vsr(folder: pathlib.Path) -> None:
    data = [
        {"image_link": "http://x/y/2.png", "caption": "The wall is left.", "label": 1},
        {"image": "0.png", "caption": "The wall is blue.", "label": "0"},
        {"image": "0.png", "caption": "?", "label": 3},
    ]
    found = rows(folder, "vsr", data)
    question = "Statement: The wall is left.\nAnswer (only '0' or '1'):"
    assert turns(found[0]) == [("user", question), ("model", "1")]
    assert pixel(found[0]) == COLORS[2]
    assert [row.turns[1].text for row in found[:2]] == ["1", "0"]
    assert found[2].problem


def test_spatial_rgpt(folder: pathlib.Path) -> None:
    talk = [{"from": "human", "value": "Is <mask> <depth> red?"}, {"from": "gpt", "value": "Region [0] is red."}]
    data = [
        {"filename": "1", "conversations": talk, "bbox": [[0, 0, 11, 7]]},
        {"id": "e", "image_info": "{'file_path': '2.png'}", "text_q": "Which?", "answer": "That."},
        {"filename": "7", "conversations": talk},
    ]
    found = rows(folder, "spatial_rgpt", data, draw_boxes=True)
    assert turns(found[0]) == [("user", "Is Region [0] red?"), ("model", "Region [0] is red.")]
    assert not found[0].single_turn
    framed = image_files.read(found[0].places[0], folder)
    assert (255, 0, 0) in [color for _, color in framed.getcolors() or []]
    assert (turns(found[1])[1], pixel(found[1])) == (("model", "That."), COLORS[2])
    assert "has no image 7" in found[2].problem
    plain = rows(folder, "spatial_rgpt", data)
    assert pixel(plain[0]) == COLORS[1]


def test_webdataset(folder: pathlib.Path) -> None:
    path = folder / "00000.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in (
            ("0001.jpg", png(COLORS[0])),
            ("0001.txt", b"a red wall"),
            ("0002.json", b'{"caption": "a green wall"}'),
            ("0002.png", png(COLORS[1])),
            ("0003.png", png(COLORS[1])),
            ("0004.txt", b"nothing"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    config = formats.SetConfig(format="captions", path=str(folder), question="What?")
    found = list(formats.read(config))
    assert [(row.name, row.problem) for row in found] == [
        ("00000/0001", ""),
        ("00000/0002", ""),
        ("00000/0003", "it has no caption"),
        ("00000/0004", "it has no image"),
    ]
    assert [turns(row) for row in found[:2]] == [
        [("user", "What?"), ("model", "a red wall")],
        [("user", "What?"), ("model", "a green wall")],
    ]
    assert [pixel(row) for row in found[:2]] == list(COLORS[:2])


def test_parquet(folder: pathlib.Path) -> None:
    table = pyarrow.table(
        {
            "image": [{"bytes": png(c), "path": None} for c in COLORS],
            "text": ["a red wall", "a green wall", None],
        }
    )
    parquet.write_table(table, folder / "train.parquet", row_group_size=2)
    found = list(formats.read(formats.SetConfig(format="captions", path=str(folder))))
    assert [row.problem for row in found] == ["", "", "it has no caption"]
    assert turns(found[1]) == [("user", "Describe this image in detail."), ("model", "a green wall")]
    assert [pixel(row) for row in found[:2]] == list(COLORS[:2])
    parquet.write_table(pyarrow.table({"sha": ["x"], "text": ["y"]}), folder / "other.parquet")
    with pytest.raises(UserError, match="has the columns sha, text, expected one of image"):
        list(formats.read(formats.SetConfig(format="captions", path=str(folder / "other.parquet"))))


def test_json_arrays_are_read_in_pieces(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "_CHUNK", 7)
    path = tmp_path / "rows.json"
    values = [{"a": "x, ] [ {", "b": [1, 2.5, {"c": None}]}, {}, {"d": "é" * 20}]
    for text in (json.dumps(values), json.dumps(values, indent=2), "\n".join(map(json.dumps, values)) + "\n\n"):
        path.write_text(text)
        assert list(json_rows.read(path)) == values
    for text, message in (
        (json.dumps(values)[:-3], "not readable JSON"),
        ("[1]", "row 0 is a int"),
        ('{"a": 1}\n{', "not readable"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            list(json_rows.read(path))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"conversations": "'words'"}, "expected a list of turns"),
        ({"conversations": 3}, "expected a list of turns"),
        ({"conversations": "[1]"}, "expected a list of turns"),
        ({"conversations": "(" * 100_000}, "is neither a list nor an object"),
        ({"bbox": "-" * 100_000 + "1"}, "is neither a list nor an object"),
        ({"bbox": "[[1, 2, 3]]"}, "expected four numbers"),
    ],
)
def test_texts_of_tables_are_bounded(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spatial.read_row({"question": "What?", **row}, number=0)


def test_mistakes(folder: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"rows.json is absent"):
        list(json_rows.read(folder / "rows.json"))
    with pytest.raises(UserError, match="path is empty"):
        list(formats.read(formats.SetConfig(format="llava")))
    with pytest.raises(UserError, match="expected the folder of the images"):
        list(formats.read(formats.SetConfig(format="spatial_rgpt", path=str(folder / "x.json"))))
    with pytest.raises(ValueError, match="expected one of llava, captions, spatial_rgpt, vsr, questions"):
        formats.SetConfig(format="coco")
    with pytest.raises(ValueError, match=r"path is 'chat\.json', but format is 'questions', which reads no file"):
        formats.SetConfig(path="chat.json")
    broken = folder / "images" / "broken.png"
    broken.write_bytes(png(COLORS[0])[:50])
    with pytest.raises(ValueError, match=r"broken.png cannot be read"):
        image_files.check({"file": str(broken)}, folder)
    with pytest.raises(ValueError, match=r"absent.png cannot be read"):
        image_files.read({"file": str(folder / "absent.png")}, folder)
