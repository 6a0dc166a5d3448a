"""Encoding of prompts for machines without the text encoder."""

import ml_dtypes
import numpy as np
import pytest

from jworld.data.records import text_store
from jworld.encoders import registry
from jworld.precompute import encode_text


def test_states_are_those_of_the_encoder(tmp_path, capsys):
    (tmp_path / "metas").mkdir()
    (tmp_path / "metas" / "a.txt").write_text("a red door\n")
    file = tmp_path / "my states.safetensors"
    command = ["--text-encoder", "hashed-words:8", "--output", str(file)]
    encode_text.main([*command, "--prompt", "turn left", "--prompt", " a red door", "--input", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "3 prompts" in printed
    assert f"--text-embeddings '{file}', or with jworld.generate as --text-encoder 'stored:{file}'" in printed
    states, _ = registry.read_embeddings(file)
    assert (states.family, states.dim) == ("hashed-words", 8)
    for prompt in ("", "a red door", "turn left"):
        expected = text_store.hashed_words(prompt, dim=8).astype(ml_dtypes.bfloat16).astype(np.float32)
        # Blanks around a prompt do not count.
        for text in (prompt, f"{prompt} ", f"\n {prompt}\n"):
            np.testing.assert_array_equal(states.encode([text])[0], expected)


@pytest.mark.parametrize("options, message", [([], "nothing to encode"), (["--input", "absent"], r"holds no \*\.txt")])
def test_nothing_to_encode(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        encode_text.main(["--text-encoder", "hashed-words:8", "--output", str(tmp_path / "x.safetensors"), *options])
    assert message.replace("\\", "") in capsys.readouterr().err
