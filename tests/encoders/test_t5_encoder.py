"""T5: padding attended to and kept (The Matrix), or masked (Cosmos-Predict2)."""

import json
import os
import shutil

import numpy as np
import pytest

from jworld.encoders import registry, t5
from jworld.utils.errors import UserError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

FLOAT32 = registry.Options(dtype="float32", device="cpu", batch_size=2)
PROMPTS = ["a red door", "", "turn left and walk to the window with the quiet dog"]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=160, d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=3, feed_forward_proj="gated-gelu"
    )
    return transformers.T5ForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def folder(model, sentence_pieces, tmp_path_factory):
    """Flat folder as of google-t5/t5-11b: the whole model with its decoder."""
    folder = tmp_path_factory.mktemp("t5")
    shutil.copytree(sentence_pieces, folder, dirs_exist_ok=True)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied")


@pytest.fixture(scope="module")
def token_ids(sentence_pieces):
    sentencepiece = pytest.importorskip("sentencepiece")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(sentence_pieces / "spiece.model"))
    return lambda prompt, limit: [*processor.encode(prompt)[: limit - 1], 1]


def run(model, ids, *, length, masked):
    padded = torch.tensor([ids + [0] * (length - len(ids))])
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids))]) if masked else None
    with torch.no_grad():
        return model.get_encoder()(input_ids=padded, attention_mask=mask).last_hidden_state[0].numpy()


def test_matrix_attends_to_padding_and_keeps_it(model, folder, token_ids):
    encoder = registry.load_text_encoder(f"t5-matrix:{folder}", FLOAT32)
    states = encoder.encode(PROMPTS)
    for prompt, rows in zip(PROMPTS, states, strict=True):
        ids = token_ids(prompt, 226)
        assert rows.shape == (226, 24)
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows, run(model, ids, length=226, masked=False), rtol=1e-4, atol=1e-5)
        masked = run(model, ids, length=226, masked=True)[: len(ids)]
        assert np.abs(rows[: len(ids)] - masked).max() > 0.01


def test_cosmos_masks_padding_and_drops_it(model, folder, token_ids):
    encoder = registry.load_text_encoder(f"t5-cosmos:{folder}", FLOAT32)
    for prompt, rows in zip(PROMPTS, encoder.encode(PROMPTS), strict=True):
        ids = token_ids(prompt, 512)
        expected = run(model, ids, length=512, masked=True)
        expected[len(ids) :] = 0.0
        padded = np.zeros((512, 24), np.float32)
        padded[: len(rows)] = rows
        assert len(rows) == len(ids)
        np.testing.assert_allclose(padded, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind, limit", [("t5-matrix", 226), ("t5-cosmos", 512)])
def test_a_long_prompt_is_cut_and_still_ends_with_the_final_token(model, folder, token_ids, kind, limit):
    prompt = " ".join(["walk to the window"] * 200)
    (rows,) = registry.load_text_encoder(f"{kind}:{folder}", FLOAT32).encode([prompt])
    ids = token_ids(prompt, limit)
    assert rows.shape == (limit, 24)
    assert len(ids) == limit
    np.testing.assert_allclose(rows, run(model, ids, length=limit, masked=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", [t5.MATRIX, t5.COSMOS])
def test_a_batch_equals_single_prompts(folder, rule):
    encoder = t5.T5(str(folder), rule, registry.Options(dtype="float32", device="cpu", batch_size=3))
    for prompt, rows in zip(PROMPTS, encoder.encode(PROMPTS), strict=True):
        np.testing.assert_allclose(rows, encoder.encode([prompt])[0], rtol=1e-4, atol=1e-5)
    assert encoder.encode([]) == []


def test_a_pipeline_folder_gives_the_same_encoder(model, folder, sentence_pieces, tmp_path):
    shutil.copytree(sentence_pieces, tmp_path / "tokenizer")
    encoder_only = transformers.T5EncoderModel(model.config)
    encoder_only.load_state_dict(
        {name: value for name, value in model.state_dict().items() if name.startswith(("encoder.", "shared."))}
    )
    encoder_only.save_pretrained(tmp_path / "text_encoder")
    (tmp_path / "transformer").mkdir()
    flat = registry.load_text_encoder(f"t5-cosmos:{folder}", FLOAT32)
    pipeline = registry.load_text_encoder(f"t5-cosmos:{tmp_path}", FLOAT32)
    np.testing.assert_array_equal(pipeline.encode(PROMPTS[:1])[0], flat.encode(PROMPTS[:1])[0])


def test_weights_in_the_older_format_are_read_without_running_code(model, folder, copied):
    (copied / "model.safetensors").unlink()
    torch.save(model.state_dict(), copied / "pytorch_model.bin")
    expected = registry.load_text_encoder(f"t5-cosmos:{folder}", FLOAT32).encode(PROMPTS)
    found = registry.load_text_encoder(f"t5-cosmos:{copied}", FLOAT32).encode(PROMPTS)
    np.testing.assert_array_equal(found[0], expected[0])

    class Bad:
        def __reduce__(self):
            return os.mkdir, (str(copied / "owned"),)

    torch.save({"shared.weight": Bad()}, copied / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded as T5EncoderModel"):
        registry.load_text_encoder(f"t5-cosmos:{copied}", FLOAT32)
    assert not (copied / "owned").exists()


def test_the_manifest_distinguishes_rules_and_weights(folder, copied):
    def entry(kind, where):
        return registry.load_text_encoder(f"{kind}:{where}", FLOAT32).manifest_entry()

    matrix, cosmos = entry("t5-matrix", folder), entry("t5-cosmos", folder)
    assert matrix == {**cosmos, "kind": "t5-matrix", "tokens": 226}
    assert cosmos == {
        "kind": "t5-cosmos",
        "family": "t5",
        "dim": 24,
        "tokens": 512,
        "source": str(folder),
        "hash": cosmos["hash"],
        "dtype": "float32",
    }
    assert entry("t5-cosmos", copied)["hash"] == cosmos["hash"]
    weights = safetensors_torch.load_file(copied / "model.safetensors")
    weights["shared.weight"][0, 0] += 1
    safetensors_torch.save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    assert entry("t5-cosmos", copied)["hash"] != cosmos["hash"]


def test_the_published_dtype_is_the_default(folder):
    options = registry.Options(device="cpu")
    encoder = registry.load_text_encoder(f"t5-cosmos:{folder}", options)
    exact = registry.load_text_encoder(f"t5-cosmos:{folder}", FLOAT32).encode(PROMPTS)[0]
    rounded = encoder.encode(PROMPTS)[0]
    assert encoder.manifest_entry()["dtype"] == "bfloat16"
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.1 * np.abs(exact).max()


def drop(folder, name):
    weights = safetensors_torch.load_file(folder / "model.safetensors")
    del weights[name]
    safetensors_torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def add(folder, name):
    weights = safetensors_torch.load_file(folder / "model.safetensors")
    weights[name] = torch.zeros(2)
    safetensors_torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def set_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: drop(f, "encoder.final_layer_norm.weight"), r"lacks weight 'encoder.final_layer_norm.weight'"),
        (lambda f: add(f, "encoder.extra"), r"has no place for weight 'encoder.extra' \(1 such\)"),
        (lambda f: set_config(f, d_ff=16), r"cannot be loaded as T5EncoderModel"),
        (lambda f: set_config(f, model_type="bert"), r"config.json has model_type 'bert', t5-cosmos expects 't5'"),
        (lambda f: (f / "config.json").write_text("{"), r"config.json is not valid JSON"),
        (lambda f: (f / "config.json").unlink(), r"config.json is absent: give t5-cosmos the folder of a downloaded"),
        (lambda f: (f / "model.safetensors").write_bytes(b"garbage"), r"model.safetensors is not a safetensors file"),
        (lambda f: (f / "model.safetensors").unlink(), r"cannot be loaded as T5EncoderModel"),
        (lambda f: (f / "spiece.model").unlink(), r"has no tokenizer: expected one of tokenizer.json, tokenizer"),
        (lambda f: (f / "spiece.model").write_bytes(b"garbage"), r"tokenizer in .* cannot be read"),
    ],
)
def test_a_damaged_folder_is_named(copied, damage, message):
    damage(copied)
    with pytest.raises(UserError, match=message):
        registry.load_text_encoder(f"t5-cosmos:{copied}", FLOAT32)


def test_states_that_overflow_are_refused(copied):
    weights = safetensors_torch.load_file(copied / "model.safetensors")
    weights["encoder.final_layer_norm.weight"] *= 1e6
    safetensors_torch.save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    half = registry.Options(dtype="float16", device="cpu")
    with pytest.raises(
        UserError, match=r"encoder states in torch.float16 are not finite: choose another encoder dtype"
    ):
        registry.load_text_encoder(f"t5-cosmos:{copied}", half).encode(PROMPTS)
