"""Batches of conversations: shapes, order, resuming, processes, and generated questions from recording to batch."""

import collections
import errno
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import PIL.Image
import pytest
from conversation_configs import make_config

from jworld.data import pipeline, training_data
from jworld.data.conversations import batches, chat, dataset, prepared, questions
from jworld.utils.errors import UserError


@pytest.fixture(scope="module")
def question_set(tmp_path_factory: pytest.TempPathFactory) -> dataset.Conversations:
    data = dataset.Conversations(make_config(tmp_path_factory.mktemp("questions")), image_tokens=4)
    data.prepare()
    return data


def test_questions_become_batches(question_set: dataset.Conversations) -> None:
    batch = next(question_set.batches("train"))
    (length,) = {batch[name].shape[1] for name in ("tokens", "mask", "labels")}
    assert length in (48, 96)
    assert batch["pixel_values"].shape == (4, 1, 8, 8, 3)
    assert batch["world_pixels"].shape == (4, 16, 16, 3)
    ids, source = question_set.tokenizer.ids, question_set.source("train")
    for row, number in enumerate(batch["index"]):
        conversation = source[int(number)]
        tokens = batch["tokens"][row][batch["mask"][row]]
        assert (tokens == ids[chat.IMAGE]).sum() == 4
        answer_tokens = batch["labels"][row][batch["labels"][row] != chat.IGNORED]
        assert question_set.tokenizer.decode(answer_tokens.tolist()) == conversation.turns[1].text
        kind, answer = questions.kind_of(conversation.name), conversation.turns[1].text
        assert answer in questions.ANSWERS[kind]


def test_splits_have_their_own_episodes_and_balanced_answers(question_set: dataset.Conversations) -> None:
    names = {}
    for split in ("train", "val"):
        source = question_set.source(split)
        rows = [source[i] for i in range(len(source))]
        names[split] = {row.name.split("/")[0] for row in rows}
        counts = collections.Counter((questions.kind_of(row.name), row.turns[1].text) for row in rows)
        for kind, (one, other) in questions.ANSWERS.items():
            assert counts[kind, one] == counts[kind, other]
        assert sum(counts.values()) > 0
    assert not names["train"] & names["val"]


def test_a_set_is_prepared_once_and_requires_its_tokenizer(
    question_set: dataset.Conversations, tmp_path: pathlib.Path
) -> None:
    before = (question_set.directory / "manifest.json").stat().st_mtime_ns
    question_set.prepare()
    assert (question_set.directory / "manifest.json").stat().st_mtime_ns == before
    question_set.keep(tmp_path)
    question_set.check_kept(tmp_path)
    assert question_set.find_problem(tmp_path) == ""
    (tmp_path / dataset.TOKENIZER).write_text("{}")
    with pytest.raises(UserError, match=r"differs from .* with which the model was trained"):
        question_set.check_kept(tmp_path)
    identity = prepared.Identity("other", 4)
    with pytest.raises(UserError, match="was made with another tokenizer"):
        prepared.Source(question_set.directory, "train", identity, max_tokens=96)
    with pytest.raises(UserError, match="have more than 5 tokens"):
        prepared.Source(question_set.directory, "train", question_set._identity(), max_tokens=5)


def test_a_changed_manifest_is_refused(question_set: dataset.Conversations, tmp_path: pathlib.Path) -> None:
    text = (question_set.directory / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"unusable": 0', '"unusable": 1'))
    with pytest.raises(UserError, match=r"manifest\.json differs from its checksum"):
        prepared.read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps(prepared.read_manifest(question_set.directory)))
    assert prepared.read_manifest(tmp_path) == prepared.read_manifest(question_set.directory)


def test_a_tokenizer_that_cannot_be_copied_is_named(
    question_set: dataset.Conversations, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: pathlib.Path, target: pathlib.Path) -> None:
        target.write_text("half")
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(UserError, match=r"cannot be copied to .* \(Input/output error\): make it readable"):
        question_set.keep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_order_puts_similar_lengths_together() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 33, 50)
    order = batches.LengthOrder(lengths, (8, 16, 32), global_batch=4, seed=1, shuffle=True)
    epoch = 50 // 4 * 4
    drawn = [order(position) for position in range(2 * epoch)]
    for start in range(0, len(drawn), 4):
        rows, sizes = zip(*drawn[start : start + 4], strict=True)
        assert len(set(sizes)) == 1
        assert max(lengths[list(rows)]) <= sizes[0]
    first, second = ([row for row, _ in drawn[i * epoch : (i + 1) * epoch]] for i in range(2))
    assert len(set(first)) == len(set(second)) == epoch
    assert first != second
    # Only the remainders of shorter buckets are padded to a longer one.
    wasted = [size > min(b for b in (8, 16, 32) if b >= lengths[row]) for row, size in drawn[:epoch]]
    assert sum(wasted) <= 2 * 3
    again = batches.LengthOrder(lengths, (8, 16, 32), global_batch=4, seed=1, shuffle=True)
    assert [again(position) for position in (70, 3)] == [drawn[70], drawn[3]]


def test_fewer_conversations_than_a_batch_are_repeated() -> None:
    order = batches.LengthOrder(np.array([3, 9]), (8, 16), global_batch=4, seed=0, shuffle=False)
    assert [order(position) for position in range(5)] == [(0, 16), (1, 16), (0, 16), (1, 16), (0, 16)]


def test_resumed_and_split_batches_are_the_same(question_set: dataset.Conversations) -> None:
    straight = question_set.batches("train")
    expected = [next(straight) for _ in range(4)]
    resumed = question_set.batches("train")
    resumed.set_state({**straight.get_state(), "next_batch": 2})
    for batch in expected[2:]:
        np.testing.assert_equal(next(resumed), batch)
    source = question_set.source("train")
    order = batches.LengthOrder(source.lengths, question_set.clip.lengths, global_batch=4, seed=0, shuffle=True)
    halves = [
        pipeline.make_dataset(
            batches.Examples(source, order),
            batches.MakeExample(question_set.clip, question_set.tokenizer, source),
            batches.spec(question_set.clip, 4),
            global_batch=4,
            seed=0,
            process_index=process,
            process_count=2,
        )
        for process in range(2)
    ]
    for batch in expected[:2]:
        parts = [next(half) for half in halves]
        np.testing.assert_array_equal(np.concatenate([part["tokens"] for part in parts]), batch["tokens"])


def test_unusable_conversations_are_named_and_counted(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    rows: list[dict[str, Any]] = []
    talk = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A wall."}]
    for number in range(40):
        PIL.Image.new("RGB", (9, 9)).save(tmp_path / "images" / f"{number}.png")
        rows.append({"id": f"row{number}", "image": f"{number}.png", "conversations": talk})
    rows[3]["image"] = "absent.png"
    (tmp_path / "images" / "5.png").write_bytes(b"not an image")
    rows[7]["conversations"] = talk[:1]
    rows[9]["conversations"] = [talk[0], {"from": "gpt", "value": "x <bos>"}]
    rows[11] = {"id": "row11", "image": ["0.png", "1.png"], "conversations": talk}
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    config = make_config(tmp_path, path=str(tmp_path / "rows.json"), images=str(tmp_path / "images"), val_share=0.3)
    config.data.conversations.format = "llava"
    data = dataset.Conversations(config, image_tokens=4)
    data.prepare()
    lines = (data.directory / prepared.UNUSABLE).read_text().splitlines()
    assert [line.split(":")[0] for line in lines] == ["row3", "row5", "row7", "row9", "row11"]
    for line, reason in zip(
        lines,
        (
            "absent.png cannot be read",
            "5.png cannot be read",
            "ends with a question that has no answer",
            "contains <bos>",
            "has 2 images",
        ),
        strict=True,
    ):
        assert reason in line
    assert "5 cannot be used, see unusable.txt; first: row3" in capsys.readouterr().out
    assert len(data.source("train")) + len(data.source("val")) == 35
    batch = next(data.batches("val"))
    assert batch["tokens"].shape == (4, 48)
    for image in (tmp_path / "images").iterdir():
        image.unlink()
    with pytest.raises(UserError, match=r"png cannot be read.*restore it"):
        next(data.batches("train"))


def test_a_batch_of_another_length_is_refused(question_set: dataset.Conversations) -> None:
    source = question_set.source("train")
    order = batches.LengthOrder(source.lengths, (64,), global_batch=4, seed=0, shuffle=True)
    transform = batches.MakeExample(question_set.clip, question_set.tokenizer, source)
    config = make_config(question_set.directory.parent)
    wrong = training_data.batches(
        config, batches.Examples(source, order), transform, batches.spec(question_set.clip, 4), split="train"
    )
    with pytest.raises(UserError, match=r"'tokens' is int32 \[4, 64\], the model expects int32 \[4, 96\]"):
        next(wrong)
