"""Control vectors of the driving tokens: text features of sentences, and the file that recipes name."""

import json
import pathlib
import shlex

import numpy as np
import pytest
import safetensors.numpy

from jworld.cameras import driving
from jworld.systems.matrix import data, encode_controls
from jworld.utils import errors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A CLIP model with a few thousand random weights, whose tokens are letters."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    letters = sorted({letter for sentence in driving.SENTENCES.values() for letter in sentence.lower()} - {" "})
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    end = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token="<|endoftext|>"
    ).save_pretrained(folder)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = sizes | end | {"vocab_size": len(words), "max_position_embeddings": 77, "projection_dim": 12}
    config = transformers.CLIPConfig(
        text_config=text, vision_config=sizes | {"image_size": 8, "patch_size": 4}, projection_dim=12
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


def test_vectors_are_the_features_of_each_sentence(
    clip: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my folder" / "controls.safetensors"
    encode_controls.main(["--encoder", str(clip), "--output", str(file), "--encoder-device", "cpu"])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    assert f"--config.data.clip.control_states={file}" in shlex.split(line)
    table = data.control_table(str(file), 12)
    model = transformers.CLIPTextModelWithProjection.from_pretrained(clip).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(clip)
    for row, token in enumerate((*driving.TOKENS, driving.NULL)):
        with torch.no_grad():
            expected = model(**tokenizer([driving.SENTENCES[token]], return_tensors="pt")).text_embeds[0]
        np.testing.assert_allclose(table[row], expected.numpy(), rtol=1e-4, atol=1e-5)
    distances = np.linalg.norm(table[:, None] - table[None], axis=-1) + np.eye(len(table))
    assert distances.min() > 1e-3


def test_vectors_without_an_encoder_are_far_apart() -> None:
    table = data.control_table("", 32)
    assert table.shape == (10, 32)
    assert np.linalg.norm(table[:, None] - table[None], axis=-1)[~np.eye(10, dtype=bool)].min() > 4


def test_files_that_do_not_fit(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.UserError, match=r"absent\.safetensors is absent: write the file with .*encode_controls"):
        data.control_table(str(tmp_path / "absent.safetensors"), 12)
    safetensors.numpy.save_file({data.CONTROL_STATES: np.zeros((9, 12), np.float32)}, tmp_path / "nine.safetensors")
    with pytest.raises(errors.UserError, match=r"shape \[9, 12\], expected \[10, 12\]"):
        data.control_table(str(tmp_path / "nine.safetensors"), 12)
