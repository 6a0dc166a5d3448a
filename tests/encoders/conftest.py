"""Tiny randomly initialized models in the folder layouts of the published ones."""

import sys

import encoder_files
import pytest


@pytest.fixture(scope="session")
def sentence_pieces(tmp_path_factory):
    """Folder with spiece.model and the config files of a published T5 tokenizer."""
    sentencepiece = pytest.importorskip("sentencepiece")
    folder = tmp_path_factory.mktemp("spiece")
    corpus = ["a quiet room with a red door", "turn left and walk to the window", "the fox jumps over the dog"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        num_threads=1,
    )
    (folder / "spiece.vocab").unlink()
    encoder_files.write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "T5Tokenizer",
            "extra_ids": 100,
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
        },
    )
    return folder


@pytest.fixture
def without_torch(monkeypatch):
    """Simulate a machine without the extra "torch"."""
    monkeypatch.setitem(sys.modules, "torch", None)
