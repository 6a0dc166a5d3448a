"""A folder of Gemma with tokenizer.model alone: the same tokens as SentencePiece, and a run that needs neither."""

import json
import pathlib

import numpy as np
import pytest
from test_conversation_batches import make_config

from jworld.data.conversations import chat, dataset
from jworld.utils.errors import UserError

sentencepiece = pytest.importorskip("sentencepiece")

TEXT = "Which  view is left of it, Grüße 42?\nThe second one."
TURNS = [chat.Turn("user", TEXT), chat.Turn("model", "the left one")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Make a small tokenizer of Gemma's kind: bytes as a fallback, and one special token beyond the model file."""
    folder = tmp_path_factory.mktemp("gemma")
    corpus = folder / "corpus.txt"
    corpus.write_text("\n".join(f"The view {i} is left of the second one. Which view is it?" for i in range(50)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=330,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece=chat.PAD,
        eos_piece=chat.EOS,
        bos_piece=chat.BOS,
        user_defined_symbols=["<mask>", chat.START_OF_TURN, chat.END_OF_TURN, chat.START_OF_IMAGE, chat.END_OF_IMAGE],
        minloglevel=2,
    )
    image = {"content": chat.IMAGE, "special": True, "normalized": False}
    image |= {"lstrip": False, "rstrip": False, "single_word": False}
    config = {"tokenizer_class": "GemmaTokenizer", "added_tokens_decoder": {"330": image}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_the_tokens_are_those_of_sentencepiece(folder: pathlib.Path) -> None:
    tokenizer = chat.load(folder, image_tokens=3)
    original = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    assert (tokenizer.ids[chat.PAD], tokenizer.ids[chat.BOS], tokenizer.ids[chat.IMAGE]) == (0, 2, 330)
    assert [tokenizer.ids[name] for name in chat.WORLD] == [331, 332]
    encoded = tokenizer.encode(TURNS, images=1)
    before, _, after = chat.render(TURNS, images=1, image_tokens=3, is_open=False).text.partition(chat.IMAGE * 3)
    expected = [2, *original.encode(before.removeprefix(chat.BOS)), *[330] * 3, *original.encode(after)]
    assert encoded.tokens.tolist() == expected
    assert tokenizer.decode(encoded.labels[encoded.labels >= 0].tolist()) == "the left one"


def test_a_run_holds_the_converted_tokenizer(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    config = make_config(tmp_path)
    config.data.tokenizer = str(folder)
    data = dataset.Conversations(config, image_tokens=4)
    copied = tmp_path / "encoders"
    assert data.find_problem(copied).endswith("tokenizer.json is absent")
    data.keep(copied)
    assert data.find_problem(copied) == ""
    names = {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"}
    assert {path.name for path in copied.iterdir()} == names
    # With the tokenizer.json alone, as where SentencePiece is not installed.
    converted = chat.load(copied / "tokenizer.json", image_tokens=4)
    expected = data.tokenizer.encode(TURNS, images=1).tokens
    np.testing.assert_array_equal(converted.encode(TURNS, images=1).tokens, expected)
    data.check_kept(copied)
    (copied / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(UserError, match=r"tokenizer.model differs from .*tokenizer.model, with which"):
        data.check_kept(copied)


def test_a_damaged_file_is_refused_in_one_line(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"damaged")
    (tmp_path / "tokenizer_config.json").write_bytes((folder / "tokenizer_config.json").read_bytes())
    with pytest.raises(UserError, match=r"^tokenizer in .* cannot be read \(.*\): download the model again$"):
        chat.load(tmp_path, image_tokens=3)


def test_sentencepiece_is_named_where_it_is_missing(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(UserError, match="SentencePiece, which is not installed: pip install sentencepiece, or give a"):
        chat.load(folder, image_tokens=3)
