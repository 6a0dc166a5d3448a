"""Tokenization of conversations: layout, labels, the shipped tokenizer, and refused input."""

import pathlib

import numpy as np
import pytest
import tokenizers

from jworld.data.conversations import chat
from jworld.utils.errors import UserError

SHIPPED = pathlib.Path(__file__).parents[3] / "assets" / "tokenizer"
TURNS = (
    chat.Turn("user", "Did it turn left or right?"),
    chat.Turn("model", "left"),
    chat.Turn("user", "And is the wall nearer?"),
    chat.Turn("model", "yes, nearer"),
)


@pytest.fixture(scope="module")
def tokenizer() -> chat.ChatTokenizer:
    return chat.load(SHIPPED, image_tokens=3)


def decode_raw(tokenizer: chat.ChatTokenizer, tokens: np.ndarray) -> str:
    raw = tokenizers.Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    return raw.decode([int(token) for token in tokens], skip_special_tokens=False)


def test_layout(tokenizer: chat.ChatTokenizer) -> None:
    encoded = tokenizer.encode(TURNS, images=2, is_open=True)
    image = "\n\n<start_of_image>" + "<image_soft_token>" * 3 + "<end_of_image>\n\n"
    assert decode_raw(tokenizer, encoded.tokens) == (
        f"<bos><start_of_turn>user\n{image}{image}Did it turn left or right?<end_of_turn>\n"
        "<start_of_turn>model\nleft<end_of_turn>\n"
        "<start_of_turn>user\nAnd is the wall nearer?<end_of_turn>\n"
        "<start_of_turn>model\nyes, nearer<end_of_turn>\n"
        "<start_of_turn>model\n"
    )


def test_images_stand_where_the_text_says(tokenizer: chat.ChatTokenizer) -> None:
    turns = (
        chat.Turn("system", "Be brief."),
        chat.Turn("user", "Compare <image> with\n<image>"),
        chat.Turn("model", "left"),
        chat.Turn("user", "<image>\nAnd now?"),
        chat.Turn("model", "right"),
    )
    encoded = tokenizer.encode(turns, images=3)
    image = "\n\n<start_of_image>" + "<image_soft_token>" * 3 + "<end_of_image>\n\n"
    assert decode_raw(tokenizer, encoded.tokens) == (
        f"<bos><start_of_turn>user\nBe brief.\n\nCompare{image}with{image}<end_of_turn>\n"
        "<start_of_turn>model\nleft<end_of_turn>\n"
        f"<start_of_turn>user\n{image}And now?<end_of_turn>\n"
        "<start_of_turn>model\nright<end_of_turn>\n"
    )
    has_label = encoded.labels != chat.IGNORED
    assert decode_raw(tokenizer, encoded.tokens[has_label]) == "left<end_of_turn>right<end_of_turn>"


def test_a_system_text_precedes_images_without_places(tokenizer: chat.ChatTokenizer) -> None:
    turns = (chat.Turn("system", "Be brief."), chat.Turn("user", "What?"))
    text = chat.render(turns, images=1, image_tokens=0, is_open=True).text
    image = "\n\n<start_of_image><end_of_image>\n\n"
    assert text == (f"<bos><start_of_turn>user\nBe brief.\n\n{image}What?<end_of_turn>\n<start_of_turn>model\n")


@pytest.mark.parametrize("images", [0, 1, 3])
def test_places_must_match_the_images(tokenizer: chat.ChatTokenizer, images: int) -> None:
    turns = [chat.Turn("user", "<image> or <image>?"), chat.Turn("model", "the first")]
    with pytest.raises(ValueError, match=f"its text has 2 <image>, but it has {images} image"):
        tokenizer.encode(turns, images=images)
    with pytest.raises(ValueError, match="a turn of the model contains <image>"):
        tokenizer.encode([turns[0], chat.Turn("model", "<image>")], images=2)


def test_only_answers_have_labels(tokenizer: chat.ChatTokenizer) -> None:
    encoded = tokenizer.encode(TURNS, images=1)
    has_label = encoded.labels != chat.IGNORED
    assert decode_raw(tokenizer, encoded.tokens[has_label]) == "left<end_of_turn>yes, nearer<end_of_turn>"
    np.testing.assert_array_equal(encoded.labels[has_label], encoded.tokens[has_label])


def test_answers_are_decoded_to_the_end_of_the_turn(tokenizer: chat.ChatTokenizer) -> None:
    tokens = tokenizer.encode([chat.Turn("model", "the second")], images=0).tokens
    answer = tokens[list(tokens).index(tokenizer.ids[chat.START_OF_TURN]) + 3 :]
    assert tokenizer.decode([*answer, *answer]) == "the second"


def test_padding(tokenizer: chat.ChatTokenizer) -> None:
    rows = [tokenizer.encode(TURNS[:2], images=0), tokenizer.encode(TURNS, images=1)]
    length = len(rows[1].tokens) + 2
    batch = chat.pad(rows, length, pad_id=0)
    assert batch["mask"].sum(1).tolist() == [len(row.tokens) for row in rows]
    assert (batch["tokens"][~batch["mask"]] == 0).all()
    assert (batch["labels"][~batch["mask"]] == chat.IGNORED).all()


def test_transformers_reads_the_shipped_tokenizer_alike(tokenizer: chat.ChatTokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.PreTrainedTokenizerFast.from_pretrained(SHIPPED)
    text = chat.render(TURNS, images=1, image_tokens=3, is_open=True).text + "Grüße, 42!"
    assert reference.bos_token_id == tokenizer.ids[chat.BOS] == 2
    raw = tokenizers.Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    assert reference(text, add_special_tokens=False)["input_ids"] == raw.encode(text, add_special_tokens=False).ids
    assert reference.decode(raw.encode(text, add_special_tokens=False).ids) == text


def test_text_with_special_tokens_is_refused(tokenizer: chat.ChatTokenizer) -> None:
    with pytest.raises(ValueError, match="contains <end_of_turn>"):
        tokenizer.encode([chat.Turn("user", "x<end_of_turn>y")], images=0)


def test_wrong_tokenizers_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="is absent"):
        chat.load(tmp_path, image_tokens=1)
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(UserError, match="is not a chat tokenizer"):
        chat.load(path, image_tokens=1)
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(path))
    with pytest.raises(UserError, match="lacks the special tokens <pad>, <eos>"):
        chat.load(path, image_tokens=1)
