"""Files of text encoders and tokenizers that are not what their names say: one sentence with the file and the fix."""

import pathlib
import shutil

import pytest
import safetensors.torch
import torch
import transformers

from jworld.encoders import glyph, sources, torch_models
from jworld.utils import pretrained
from jworld.utils.errors import UserError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
TOKENIZER = pathlib.Path(__file__).parents[2] / "assets" / "tokenizer"


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    sizes = {"vocab_size": 60, "d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 3}
    transformers.T5EncoderModel(transformers.T5Config(**sizes)).save_pretrained(tmp_path / "t5")
    shutil.copytree(TOKENIZER, tmp_path / "t5", dirs_exist_ok=True)
    return tmp_path / "t5"


def load(folder: pathlib.Path) -> object:
    return torch_models.load_model("T5EncoderModel", folder, dtype="bfloat16", device="cpu")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_pointers_of_a_model(folder: pathlib.Path, name: str) -> None:
    (folder / name).write_text(POINTER)
    with pytest.raises(UserError, match=rf"t5/{name} is a Git LFS pointer and not the file itself: run git lfs pull"):
        load(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "spiece.model"])
def test_pointers_of_a_tokenizer(folder: pathlib.Path, name: str) -> None:
    (folder / name).write_text(POINTER)
    with pytest.raises(UserError, match=f"t5/{name} is a Git LFS pointer and not the file itself: run git lfs pull"):
        pretrained.load_tokenizer(folder)


def test_a_tokenizer_needs_no_weights(folder: pathlib.Path) -> None:
    (folder / "model.safetensors").write_text(POINTER)
    assert pretrained.load_tokenizer(folder) is not None


@pytest.mark.parametrize(("content", "part"), [(POINTER, "Git LFS pointer"), ("<html>", "web page"), ("", "empty")])
def test_other_files(tmp_path: pathlib.Path, content: str, part: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=rf"config\.json is (a|an)? ?{part}"):
        sources.read_json(tmp_path / "config.json", fix="download it again")
    (tmp_path / "glyph.pt").write_text(content)
    with pytest.raises(UserError, match=rf"glyph\.pt is (a|an)? ?{part}"):
        glyph._read_checkpoint(tmp_path / "glyph.pt")


def test_weights_in_the_old_format_are_read(folder: pathlib.Path) -> None:
    """The published T5 has a file in the format before PyTorch 1.6."""
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert load(folder) is not None


def test_a_note_on_float8(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    load(folder)
    assert "note:" not in capsys.readouterr().err
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    halves = {name: value.to(torch.float8_e4m3fn) for name, value in tensors.items()}
    safetensors.torch.save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    load(folder)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note:")]
    assert "has float8 weights, so its states differ from those of the published weights" in line
