"""Files of questions: what an entry may hold, and what is refused by its line."""

import json
import pathlib
from typing import Any

import PIL.Image
import pytest

from jworld.systems import asking, question_files
from jworld.utils.errors import UserError


def read(folder: pathlib.Path, *rows: Any, **options: Any) -> list[question_files.Entry]:
    path = folder / "q.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return question_files.read(path, sampling=asking.Sampling(max_tokens=9, stop=("!",)), **options)


def test_entries(tmp_path: pathlib.Path) -> None:
    for name, color in (("a.png", 10), ("b.png", 20)):
        PIL.Image.new("RGB", (4, 4), (color, 0, 0)).save(tmp_path / name)
    images = [str(tmp_path / name) for name in ("a.png", "b.png")]
    talk = [("user", "hi?"), ("assistant", "hello"), ("user", "and <image>?")]
    entries = read(
        tmp_path,
        {"id": 7, "prompt": "is <image> like <image>?", "images": images, "temperature": 1, "stop": "."},
        {"messages": [{"role": role, "content": text} for role, text in talk], "image": images[1], "system": ""},
        system="be brief",
    )
    one, two = (entry.question for entry in entries)
    assert [(turn.role, turn.text) for turn in one.turns] == [
        ("system", "be brief"),
        ("user", "is <image> like <image>?"),
    ]
    assert [image[0, 0, 0] for image in one.load()] == [10, 20]
    assert one.sampling == asking.Sampling(max_tokens=9, temperature=1, stop=(".",))
    assert [turn.role for turn in two.turns] == ["user", "model", "user"]
    assert [image[0, 0, 0] for image in two.load()] == [20]
    assert two.sampling.stop == ("!",)
    assert entries[0].values["id"] == 7


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("?", "q.jsonl, line 1: expected an object"),
        ({}, "expected either 'prompt' or 'messages'"),
        ({"prompt": "?", "messages": []}, "expected either 'prompt' or 'messages'"),
        ({"prompt": "?", "temprature": 1}, "unknown key 'temprature', did you mean 'temperature'"),
        ({"prompt": "?", "temperature": "hot"}, "'temperature' is 'hot', expected a number"),
        ({"prompt": "?", "temperature": -1}, "'temperature' is -1, expected a number from 0 to 100"),
        ({"prompt": "?", "top_p": 0}, "'top_p' is 0, expected a number above 0, up to 1"),
        ({"prompt": "?", "image": "nowhere.png"}, "the image nowhere.png is absent"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "it does not start with a user's turn"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "both answers"),
    ],
)
def test_mistakes(tmp_path: pathlib.Path, row: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, row)


def test_stop_texts() -> None:
    sampling = asking.Sampling(stop=("\nUser", "###"))
    assert sampling.cut("yes ### no\nUser") == "yes "
    assert sampling.cut("yes") == "yes"
    # An end that may become a stop text is held back.
    assert [sampling.settled(text) for text in ("yes", "yes\nUs", "yes#", "yes\n", "#yes")] == [
        "yes",
        "yes",
        "yes",
        "yes",
        "#yes",
    ]
    with pytest.raises(ValueError, match="stop holds an empty text"):
        asking.Sampling(stop=("",))
