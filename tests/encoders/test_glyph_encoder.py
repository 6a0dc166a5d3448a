"""ByT5 for glyph texts: quotes, added tokens and checkpoint, compared with T5 on hand-made tokens."""

import json
import os

import numpy as np
import pytest
from encoder_files import write_json

from jworld.encoders import glyph, registry
from jworld.utils.errors import UserError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

FLOAT32 = registry.Options(dtype="float32", device="cpu", batch_size=2)
WIDTH = 24
COLORS = {"white": 0, "black": 1, "red": 2}
FONTS = {"en-Montserrat-Regular": 0, "en-Anton-Regular": 1, "cn-HelloFont": 0, "kr-Jua": 0}
ADDED = 7
BYTES = 384
PROMPTS = ['a sign "OPEN" and \u201cCaf\u00e9\u201d', "no text at all", 'the word "GO"']


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("no quotes", []),
        ("", []),
        ('a "red" door', ["red"]),
        ("a \u201cred\u201d door", ["red"]),
        ('"b" \u201ca\u201d "c"', ["b", "a", "c"]),
        ('"b" "a" "b" \u201ca\u201d', ["b", "a"]),
        ('one "open end', []),
        ('"a" b "c"', ["a", "c"]),
        ('an empty pair ""', [""]),
        ('"two\nlines"', []),
        ("'single' quotes", []),
        ('"a \u201cb\u201d c"', ["a \u201cb\u201d c"]),
        ('\u201ca "b" c\u201d', ['a "b" c']),
        ("\u201d wrong way \u201c", []),
    ],
)
def test_quoted_texts(prompt, expected):
    assert glyph.quoted_texts(prompt) == expected


def test_texts_are_listed_in_order():
    assert glyph.format_texts(["OPEN", "Caf\u00e9"]) == 'Text "OPEN". Text "Caf\u00e9". '


def test_special_tokens_are_colors_then_fonts_by_language():
    assert glyph.special_tokens(COLORS, FONTS) == [
        "<color-0>",
        "<color-1>",
        "<color-2>",
        "<en-font-0>",
        "<en-font-1>",
        "<cn-font-0>",
        "<kr-font-0>",
    ]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=BYTES + ADDED, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=3, tie_word_embeddings=False
    )
    return transformers.T5EncoderModel(config).eval()


def state_dict(model):
    """Return the encoder's weights with the names of the published checkpoint."""
    return {f"module.text_tower.encoder.{name}": value for name, value in model.get_encoder().state_dict().items()}


def save(folder, model, checkpoint):
    config = model.config.to_dict() | {"vocab_size": BYTES, "architectures": ["T5ForConditionalGeneration"]}
    write_json(folder / "byt5-small" / "config.json", config)
    write_json(folder / glyph.COLORS, COLORS)
    write_json(folder / glyph.FONTS, FONTS)
    (folder / glyph.WEIGHTS).parent.mkdir(parents=True)
    torch.save(checkpoint, folder / glyph.WEIGHTS)
    return folder


@pytest.fixture
def folder(model, tmp_path):
    other = {"module.visual.proj": torch.zeros(3), "module.logit_scale": torch.zeros(())}
    return save(tmp_path / "text_encoder", model, {"epoch": 3, "state_dict": state_dict(model) | other})


def byte_ids(text):
    return [byte + 3 for byte in text.encode()]


def run(model, ids):
    """Padded as the published pipeline pads it: to 256 tokens."""
    padded = torch.tensor([ids + [0] * (256 - len(ids))])
    mask = torch.tensor([[1.0] * len(ids) + [0.0] * (256 - len(ids))])
    with torch.no_grad():
        return model(input_ids=padded, attention_mask=mask).last_hidden_state[0, : len(ids)].numpy()


def test_quoted_texts_are_encoded_and_other_prompts_have_no_rows(model, folder):
    encoder = registry.load_text_encoder(f"byt5-glyph:{folder}", FLOAT32)
    both, none, one = encoder.encode(PROMPTS)
    assert none.shape == (0, WIDTH)
    expected = [*byte_ids('Text "OPEN". Text "Café". '), 1]
    assert both.shape == (len(expected), WIDTH)
    np.testing.assert_allclose(both, run(model, expected), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one, run(model, [*byte_ids('Text "GO". '), 1]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(PROMPTS[2:])[0], one, rtol=1e-4, atol=1e-5)


def test_added_tokens_have_the_embeddings_after_the_bytes(model, folder):
    encoder = registry.load_text_encoder(f"byt5-glyph:{folder}", FLOAT32)
    (rows,) = encoder.encode(['a "<color-2><cn-font-0>" sign'])
    ids = [*byte_ids('Text "'), BYTES + 2, BYTES + 5, *byte_ids('". '), 1]
    np.testing.assert_allclose(rows, run(model, ids), rtol=1e-4, atol=1e-5)


def test_long_texts_are_cut_at_256_tokens(model, folder):
    (rows,) = registry.load_text_encoder(f"byt5-glyph:{folder}", FLOAT32).encode(['"' + "long " * 80 + '"'])
    ids = [*byte_ids('Text "' + "long " * 80)[:255], 1]
    assert rows.shape == (256, WIDTH)
    np.testing.assert_allclose(rows, run(model, ids), rtol=1e-4, atol=1e-5)


def test_the_folder_above_and_bare_weights_are_the_same_encoder(model, folder, tmp_path):
    bare = save(tmp_path / "bare", model, model.get_encoder().state_dict())
    expected = registry.load_text_encoder(f"byt5-glyph:{folder}", FLOAT32).encode(PROMPTS)[0]
    for where in (tmp_path, bare):
        found = registry.load_text_encoder(f"byt5-glyph:{where}", FLOAT32).encode(PROMPTS)[0]
        np.testing.assert_array_equal(found, expected)


def test_the_manifest_entry(folder):
    entry = registry.load_text_encoder(f"byt5-glyph:{folder}", registry.Options(device="cpu")).manifest_entry()
    assert entry == {
        "kind": "byt5-glyph",
        "family": "byt5-glyph",
        "dim": WIDTH,
        "tokens": 256,
        "source": str(folder),
        "hash": entry["hash"],
        "dtype": "float32",
    }


class Bad:
    def __reduce__(self):
        return os.getcwd, ()


def save_weights(folder, model, change):
    state = state_dict(model)
    change(state)
    torch.save({"state_dict": state}, folder / glyph.WEIGHTS)


PREFIX = "module.text_tower.encoder."


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f, m: (f / glyph.COLORS).unlink(), "color_idx.json is absent: put google/byt5-small into"),
        (lambda f, m: (f / glyph.WEIGHTS).unlink(), "byt5_model.pt is absent"),
        (lambda f, m: (f / glyph.CONFIG).unlink(), "byt5-small/config.json is absent"),
        (lambda f, m: write_json(f / glyph.FONTS, ["en-A"]), "10-lang_idx.json holds a list, expected an object"),
        (lambda f, m: write_json(f / glyph.FONTS, {"en-A": "0"}), "'en-A' is \"0\", expected a whole number"),
        (
            lambda f, m: write_json(f / glyph.COLORS, {**COLORS, "blue": 3}),
            r"embed_tokens.weight is \[391, 24\], expected \[392, 24\]",
        ),
        (lambda f, m: save_weights(f, m, lambda s: s.popitem()), "byt5_model.pt lacks weight '.*' "),
        (
            lambda f, m: save_weights(f, m, lambda s: s.update({PREFIX + "extra": torch.zeros(1)})),
            r"has no place for weight 'extra'",
        ),
        (lambda f, m: torch.save({"state_dict": {"x": torch.zeros(1)}}, f / glyph.WEIGHTS), "lacks weight"),
        (lambda f, m: torch.save([1], f / glyph.WEIGHTS), "holds a list, expected a dict of weights"),
        (lambda f, m: torch.save({"state_dict": Bad()}, f / glyph.WEIGHTS), "other objects than tensors"),
        (lambda f, m: (f / glyph.WEIGHTS).write_bytes(b"garbage"), r"is not a \.pt file that may be loaded"),
    ],
)
def test_a_damaged_folder_is_named(model, folder, damage, message):
    damage(folder, model)
    with pytest.raises(UserError, match=message):
        registry.load_text_encoder(f"byt5-glyph:{folder}", FLOAT32)


def test_another_model_than_byt5_is_refused(folder):
    path = folder / glyph.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "mt5"}))
    with pytest.raises(UserError, match="has model_type 'mt5', byt5-glyph expects 't5'"):
        registry.load_text_encoder(f"byt5-glyph:{folder}", FLOAT32)
