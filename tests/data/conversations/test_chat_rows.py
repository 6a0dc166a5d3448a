"""Chat data of several shapes in one file: rows with one image, several, none, system texts, and malformed rows."""

import json
import pathlib
from typing import Any

import numpy as np
import PIL.Image
import pytest
from conversation_configs import make_config

from jworld.data.conversations import batches, chat, chat_rows, dataset, formats, prepared

TALK = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A wall."}]


def said(*pairs: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in pairs]


def test_roles_and_parts() -> None:
    parts = [
        {"type": "text", "text": "Compare "},
        {"type": "image"},
        {"type": "text", "text": " with "},
        {"type": "image", "path": "own.png"},
        {"type": "image_url", "image_url": {"url": "http://x/y.png"}},
    ]
    raw = {
        "messages": said(("system", "Be brief."), ("user", parts), ("assistant", "Same."), ("user", "<image> too?")),
        "images": ["a.png", "b.png"],
    }
    turns, names = chat_rows.read_row(raw)
    assert [turn.role for turn in turns] == ["system", "user", "model", "user"]
    assert turns[1].text == "Compare <image> with <image><image>"
    assert names == ["a.png", "own.png", "http://x/y.png", "b.png"]
    turns, names = chat_rows.read_row({"system": "Be kind.", "conversations": TALK, "image": "a.png"})
    assert [turn.role for turn in turns] == ["system", "user", "model"]
    assert names == ["a.png"]


def test_images_without_places_follow_in_order() -> None:
    raw = {"messages": said(("user", "Which?"), ("assistant", "This.")), "images": ["a.png", "b.png"]}
    assert chat_rows.read_row(raw)[1] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"image": "a.png"}, "no conversations or messages"),
        ({"messages": ["hello"]}, "a turn is 'hello', expected an object"),
        ({"messages": said(("robot", "x"))}, "turn 1 is from 'robot', expected one of human"),
        ({"messages": said(("user", 3))}, "turn 1 has the content '3', expected a text"),
        ({"messages": said(("user", [{"type": "audio"}]))}, "turn 1 has a part of type 'audio'"),
    ],
)
def test_malformed_rows(raw: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chat_rows.read_row(raw)


@pytest.mark.parametrize(
    ("roles", "problem"),
    [
        ("um", ""),
        ("sumum", ""),
        ("", "it does not start with a user's turn"),
        ("m", "it does not start with a user's turn"),
        ("umm", "turns 2 and 3 are both answers"),
        ("uum", "turns 1 and 2 are both questions"),
        ("umu", "it ends with a question that has no answer"),
        ("umsum", "turn 3 is the system's, expected only the first one"),
        ("ue", "turn 2 is an empty answer"),
    ],
)
def test_order_of_turns(roles: str, problem: str) -> None:
    kinds: dict[str, chat.Role] = {"u": "user", "m": "model", "s": "system", "e": "model"}
    turns = tuple(chat.Turn(kinds[role], " " if role == "e" else "x") for role in roles)
    assert chat_rows.order_problem(turns) == problem


def image_places(tokenizer: chat.ChatTokenizer, tokens: np.ndarray) -> list[int]:
    """Return the first token of each image."""
    return np.flatnonzero(tokens == tokenizer.ids[chat.START_OF_IMAGE]).tolist()


def test_a_file_of_mixed_rows(tmp_path: pathlib.Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(3):
        PIL.Image.new("RGB", (9, 9), (80 * number, 0, 0)).save(tmp_path / "images" / f"{number}.png")
    rows = {
        "one": {"image": "1.png", "conversations": TALK},
        "none": {"messages": said(("system", "Be brief."), ("user", "Hi?"), ("assistant", "Hello."))},
        "two": {
            "images": ["2.png", "1.png"],
            "messages": said(
                ("user", "Is it <image>?"), ("assistant", "No."), ("user", "<image>?"), ("assistant", "Yes.")
            ),
        },
        "three places": {
            "image": "1.png",
            "conversations": [{"from": "human", "value": "<image> <image> <image>?"}, TALK[1]],
        },
        "empty": {"image": "1.png", "conversations": [TALK[0], {"from": "gpt", "value": ""}]},
        "twice": {"image": "1.png", "conversations": [*TALK, TALK[1]]},
    }
    lines = [json.dumps({"id": name, **row}) for name, row in rows.items()]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    config = make_config(
        tmp_path, format="llava", path=str(tmp_path / "chat.jsonl"), images=str(tmp_path / "images"), val_share=0.0
    )
    config.data.clip = {"lengths": (96,), "image_size": 8, "world_size": 16, "images": 2}
    config.global_batch = 3
    data = dataset.Conversations(config, image_tokens=4)
    data.prepare()
    assert (data.directory / prepared.UNUSABLE).read_text().splitlines() == [
        "three places: its text has 3 <image>, but it has 1 image",
        "empty: turn 2 is an empty answer",
        "twice: turns 2 and 3 are both answers",
    ]
    batch = next(data.batches("train"))
    source = data.source("train")
    by_name = {source[int(number)].name: row for row, number in enumerate(batch["index"])}
    assert batch["has_world"][[by_name[name] for name in ("one", "none", "two")]].tolist() == [True, False, True]
    reds = batch["pixel_values"][..., 0, 0, 0]
    assert reds[by_name["one"]].tolist() == [80, 0]
    assert reds[by_name["two"]].tolist() == [160, 80]
    assert batch["world_pixels"][by_name["two"], 0, 0, 0] == 160
    tokens = batch["tokens"][by_name["two"]]
    first, second = image_places(data.tokenizer, tokens)
    answers = np.flatnonzero(batch["labels"][by_name["two"]] != chat.IGNORED)
    assert first < answers[0] < second < answers[-1]
    assert not image_places(data.tokenizer, batch["tokens"][by_name["none"]])


def test_the_split_of_rows_without_images_depends_on_their_text() -> None:
    splits = set()
    for number in range(40):
        turns = (chat.Turn("user", f"{number}?"), chat.Turn("model", "yes"))
        row = formats.Conversation(name="x", turns=turns)
        splits.add(prepared._split(row, 0.5))
    assert splits == {"train", "val"}


def test_a_batch_without_a_world_has_no_world_arrays() -> None:
    clip = batches.ClipConfig(world_size=0)
    assert "has_world" not in batches.spec(clip, 2)
    assert list(batches.model_pixels([], clip)) == ["pixel_values"]
