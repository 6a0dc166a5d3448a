"""Text states in a file, in place of an encoder."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from jworld.encoders import registry
from jworld.utils.errors import UserError

PROMPTS = ["", 'a sign "OPEN"', "a red door"]
STATES = {f"text_states.{i}": np.full((length, 6), i + 0.1, np.float32) for i, length in enumerate((1, 4, 3))}
GLYPHS = {f"glyph_states.{i}": np.full((length, 5), i + 0.2, np.float32) for i, length in enumerate((0, 2, 0))}


def metadata(**changes):
    value = {"family": "qwen2.5-vl", "prompts": json.dumps(PROMPTS)} | changes
    return {key: text for key, text in value.items() if text is not None}


def write(path, tensors, **changes):
    safetensors.numpy.save_file(tensors, path, metadata=metadata(**changes))
    return path


def test_states_are_looked_up_by_prompt(tmp_path):
    path = write(tmp_path / "states.safetensors", STATES | GLYPHS)
    text, glyphs = registry.read_embeddings(path)
    door, sign, again = text.encode(["a red door", 'a sign "OPEN"', "a red door"])
    np.testing.assert_array_equal(door, STATES["text_states.2"])
    np.testing.assert_array_equal(sign, STATES["text_states.1"])
    np.testing.assert_array_equal(again, door)
    none, opened = glyphs.encode(["a red door", 'a sign "OPEN"'])
    assert none.shape == (0, 5)
    np.testing.assert_array_equal(opened, GLYPHS["glyph_states.1"])


def test_the_manifest_names_the_encoder_that_made_the_states(tmp_path):
    text, glyphs = registry.read_embeddings(write(tmp_path / "a.safetensors", STATES | GLYPHS))
    entry = text.manifest_entry()
    assert entry == {
        "kind": "stored",
        "family": "qwen2.5-vl",
        "dim": 6,
        "tokens": 4,
        "source": str(tmp_path / "a.safetensors"),
        "hash": entry["hash"],
    }
    assert (glyphs.family, glyphs.dim) == ("byt5-glyph", 5)
    changed = {**STATES, "text_states.1": STATES["text_states.1"] + 1}
    assert registry.read_embeddings(write(tmp_path / "b.safetensors", changed))[0].entry.hash != entry["hash"]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_floats_are_read_and_glyphs_may_be_left_out(tmp_path, dtype):
    stored = {name: states.astype(dtype) for name, states in STATES.items()}
    text, glyphs = registry.read_embeddings(write(tmp_path / "states.safetensors", stored))
    assert glyphs is None
    (found,) = text.encode(["a red door"])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, stored["text_states.2"].astype(np.float32))


def test_a_prompt_without_states_is_named(tmp_path):
    text, _ = registry.read_embeddings(write(tmp_path / "states.safetensors", STATES))
    with pytest.raises(UserError, match=r"has no states for prompt 'a cat' \(2 such\)"):
        text.encode(["", "a cat", "a dog", "a cat"])


def test_states_that_are_not_finite_are_refused(tmp_path):
    states = {**STATES, "text_states.1": np.full((1, 6), np.nan, np.float32)}
    text, _ = registry.read_embeddings(write(tmp_path / "states.safetensors", states))
    with pytest.raises(UserError, match=r"'text_states.1' has values that are not finite"):
        text.encode(['a sign "OPEN"'])


@pytest.mark.parametrize(
    "tensors, changes, message",
    [
        (STATES, {"prompts": None}, "metadata 'prompts' is missing"),
        (STATES, {"family": None}, "metadata 'family' is missing"),
        (STATES, {"prompts": "["}, "metadata 'prompts' is not JSON"),
        (STATES, {"prompts": '{"a": 1}'}, "is not a list of one or more strings"),
        (STATES, {"prompts": "[]"}, "is not a list of one or more strings"),
        (STATES, {"prompts": '["", 1, "b"]'}, "is not a list of one or more strings"),
        (STATES, {"prompts": '["", "b", "b"]'}, "prompt 'b' occurs twice"),
        (STATES, {"prompts": '["", "b", "c", "d"]'}, "lacks 'text_states.3' .* names 4 prompts"),
        (STATES, {"prompts": '["", "b"]'}, "'text_states.2' .* belongs to no prompt"),
        ({**STATES, "other": np.zeros(1)}, {}, "'other' .* belongs to no prompt"),
        ({**STATES, "glyph_states.0": np.zeros((0, 5), np.float32)}, {}, r"lacks 'glyph_states.1' \(2 such\)"),
        ({**STATES, "text_states.1": np.zeros((4, 7), np.float32)}, {}, "'text_states.1' is 7 wide, expected 6"),
        ({**STATES, "text_states.1": np.zeros(6, np.float32)}, {}, r"'text_states.1' is F32 \[6\], expected"),
        ({**STATES, "text_states.1": np.zeros((4, 6), np.int32)}, {}, r"'text_states.1' is I32 \[4, 6\], expected"),
    ],
)
def test_a_file_of_another_layout_is_refused(tmp_path, tensors, changes, message):
    path = write(tmp_path / "states.safetensors", tensors, **changes)
    with pytest.raises(UserError, match=message):
        registry.read_embeddings(path)


def test_an_absent_or_broken_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="is absent: give a file of"):
        registry.read_embeddings(tmp_path / "none.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"garbage")
    with pytest.raises(UserError, match="is not a safetensors file"):
        registry.read_embeddings(tmp_path / "broken.safetensors")
