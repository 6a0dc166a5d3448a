"""Text store with one and several files, and the hashed-words encoder."""

import ml_dtypes
import numpy as np
import pytest

from jworld.data import records
from jworld.data.records import text_store
from jworld.utils.errors import UserError

LENGTHS = ((1, 0), (7, 2), (3, 0), (4, 5), (2, 1))


def states(row: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(row)
    tokens, glyphs = LENGTHS[row]
    return generator.normal(size=(tokens, 6)).astype(np.float32), generator.normal(size=(glyphs, 5))


def write_store(directory, rows_per_file: tuple[int, ...]) -> dict:
    """Write numbered files in which prompt i is `states(i)`; return the manifest."""
    shards, row = [], 0
    for number, rows in enumerate(rows_per_file):
        with records.RecordWriter(directory, f"text-{number}") as writer:
            for i in range(row, row + rows):
                writer.write(text_store.prompt_record(*states(i)))
        shards += writer.shards
        row += rows
    return {"text": shards, "prompts": [str(i) for i in range(row)]}


@pytest.mark.parametrize("rows_per_file", [(5,), (1, 3, 1)])
def test_rows_are_numbered_across_files(tmp_path, rows_per_file):
    manifest = write_store(tmp_path, rows_per_file)
    assert len(manifest["text"]) == len(rows_per_file)
    store = text_store.TextStore(tmp_path, manifest)
    assert len(store) == 5
    for row in (4, 0, 3, 1, 2):
        prompt = store.prompt(row)
        for key, expected in zip(("text_states", "glyph_states"), states(row), strict=True):
            assert prompt[key].dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(prompt[key], expected.astype(ml_dtypes.bfloat16))


def test_absent_and_damaged_files_are_named(tmp_path):
    manifest = write_store(tmp_path, (2, 3))
    second = tmp_path / manifest["text"][1]["file"]
    good = second.read_bytes()
    damaged = bytearray(good)
    damaged[good.index(records.encode_record(text_store.prompt_record(*states(3)))) + 200] ^= 0xFF
    second.write_bytes(damaged)
    store = text_store.TextStore(tmp_path, manifest)
    assert len(store.prompt(2)["text_states"]) == 3
    with pytest.raises(UserError, match=r"prompt 3 is corrupt"):
        store.prompt(3)
    second.write_bytes(good[:100])
    with pytest.raises(UserError, match=r"text-1-00000-of-00001\.arrow holds .*, expected 3 records"):
        text_store.TextStore(tmp_path, manifest)
    second.unlink()
    with pytest.raises(UserError, match=r"text-1-00000-of-00001\.arrow of the manifest is absent"):
        text_store.TextStore(tmp_path, manifest)


@pytest.mark.parametrize(
    "record",
    [
        {"text_states": np.zeros((1, 6), ml_dtypes.bfloat16)},
        {"text_states": np.zeros((1, 6), ml_dtypes.bfloat16), "glyph_states": np.zeros((1, 6), np.float32)},
        {"text_states": np.zeros((1, 6), ml_dtypes.bfloat16), "glyph_states": np.zeros(6, ml_dtypes.bfloat16)},
    ],
)
def test_prompts_without_states_are_refused(tmp_path, record):
    with records.RecordWriter(tmp_path, "text") as writer:
        writer.write(record)
    store = text_store.TextStore(tmp_path, {"text": writer.shards, "glyph_encoder": {"dim": 6}})
    with pytest.raises(UserError, match="prompt 0: 'glyph_states' is missing or not bfloat16"):
        store.prompt(0)


def test_sets_without_glyphs_have_none(tmp_path):
    with records.RecordWriter(tmp_path, "text") as writer:
        writer.write(text_store.prompt_record(np.ones((3, 6))))
    store = text_store.TextStore(tmp_path, {"text": writer.shards, "glyph_encoder": {"dim": 0}})
    assert {name: array.shape for name, array in store.prompt(0).items()} == {"text_states": (3, 6)}


def test_hashed_words():
    states = text_store.hashed_words("a red room, a RED wall", dim=512)
    assert states.shape == (7, 512)
    np.testing.assert_array_equal(states[2], states[5])
    assert not np.allclose(states[2], states[3])
    np.testing.assert_array_equal(states[:1], text_store.hashed_words("", dim=512))
    assert 0.8 < states.var() < 1.2
