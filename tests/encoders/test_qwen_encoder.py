"""Qwen2.5-VL: chat, crop, layer and mask, compared with the whole model on hand-made tokens."""

import json
import shutil

import numpy as np
import pytest

from jworld.encoders import qwen, registry
from jworld.utils.errors import UserError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

FLOAT32 = registry.Options(dtype="float32", device="cpu", batch_size=2)
WIDTH = 32
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PROMPTS = ["a red door", "", "turn {left} and walk to the \u201cwindow\u201d"]
SYSTEM = (
    "You are a helpful assistant. Describe the video by detailing the following aspects:"
    "         1. The main content and theme of the video."
    "         2. The color, shape, size, texture, quantity, text, and spatial relationships of the objects."
    "         3. Actions, events, behaviors temporal relationships, physical movement changes of the objects."
    "         4. background environment, light, style and atmosphere."
    "         5. camera angles, movements, and transitions used in the video."
)


def byte_letters():
    """Return the letter of byte-level BPE for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


LETTERS = byte_letters()
VOCABULARY = {LETTERS[byte]: byte for byte in range(256)}


def token_ids(text):
    """Tokenize a text; without merges every byte is one token, and special tokens follow the bytes."""
    for i, name in enumerate(SPECIAL):
        text = text.replace(name, chr(0xE000 + i))
    ids = []
    for letter in text:
        ids += [256 + ord(letter) - 0xE000] if 0xE000 <= ord(letter) < 0xE003 else letter.encode()
    return ids


def chat_ids(prompt):
    head = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
    return token_ids(head), token_ids(f"{prompt or ' '}<|im_end|>\n<|im_start|>assistant\n")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 256 + len(SPECIAL),
            "hidden_size": WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
            # Large weights, so that a wrong layer or mask changes the states clearly.
            "initializer_range": 0.3,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "fullatt_block_indexes": [0],
        },
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """Folder with config, weights and tokenizer of the whole model, including vision."""
    folder = tmp_path_factory.mktemp("qwen")
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder):
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {str(256 + i): {"content": name, "special": True} for i, name in enumerate(SPECIAL)}
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": special, "pad_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def encoder(folder):
    return registry.load_text_encoder(f"qwen2.5-vl:{folder}", FLOAT32)


def hidden_states(model, ids):
    """Return all hidden states of a chat, padded as in the published pipeline: to 1000 tokens after its head."""
    length = len(chat_ids("")[0]) + 1000
    padded = torch.tensor([ids + [256] * (length - len(ids))])
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids))])
    with torch.no_grad():
        output = model.model.language_model(input_ids=padded, attention_mask=mask, output_hidden_states=True)
    return [states[0].numpy() for states in output.hidden_states]


def test_the_system_prompt_keeps_its_runs_of_nine_spaces():
    assert qwen.SYSTEM_PROMPT == SYSTEM
    assert qwen.chat("x") == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_chat_equals_a_chat_template(folder):
    pytest.importorskip("jinja2")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "a {red} door"}]
    ids = tokenizer.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    assert tokenizer(qwen.chat("a {red} door"))["input_ids"] == ids["input_ids"]


def test_states_are_from_the_third_layer_from_the_end(model, encoder):
    for prompt, rows in zip(PROMPTS, encoder.encode(PROMPTS), strict=True):
        head, tail = chat_ids(prompt)
        states = hidden_states(model, head + tail)
        expected = [layer[len(head) : len(head) + len(tail)] for layer in states]
        assert rows.dtype == np.float32
        assert rows.shape == (len(tail), WIDTH)
        np.testing.assert_allclose(rows, expected[-3], rtol=1e-4, atol=1e-4)
        for other in (-1, -2, -4):
            assert np.abs(rows - expected[other]).max() > 0.1


def test_the_empty_prompt_is_one_space(encoder):
    empty, space = encoder.encode(["", " "])
    np.testing.assert_allclose(empty, space, rtol=1e-5, atol=1e-5)


def test_a_long_prompt_is_cut_after_a_thousand_tokens(model, encoder):
    prompt = "walk to the window " * 100
    (rows,) = encoder.encode([prompt])
    head, tail = chat_ids(prompt)
    assert rows.shape == (1000, WIDTH)
    expected = hidden_states(model, head + tail[:1000])[-3][len(head) :]
    np.testing.assert_allclose(rows, expected, rtol=1e-4, atol=1e-4)


def test_a_batch_equals_single_prompts(encoder):
    for prompt, rows in zip(PROMPTS, encoder.encode(PROMPTS), strict=True):
        np.testing.assert_allclose(rows, encoder.encode([prompt])[0], rtol=1e-4, atol=1e-4)


def with_names(folder, target, rename):
    """Copy a folder with renamed weights; None leaves a weight out."""
    shutil.copytree(folder, target)
    weights = safetensors_torch.load_file(folder / "model.safetensors")
    renamed = {rename(name): value for name, value in weights.items() if rename(name)}
    safetensors_torch.save_file(renamed, target / "model.safetensors", metadata={"format": "pt"})
    return target


NAMES = {
    "newer, whole": lambda n: "model.language_model." + n[6:] if n.startswith("model.") else n,
    "newer, without head": lambda n: (
        "language_model." + n[6:] if n.startswith("model.") else None if n.startswith("lm_head") else n
    ),
    "language model in the whole model's config": lambda n: n[6:] if n.startswith("model.") else None,
}


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_of_the_weights_gives_the_same_encoder(folder, encoder, tmp_path, name):
    copy = with_names(folder, tmp_path / "copy", NAMES[name])
    found = registry.load_text_encoder(f"qwen2.5-vl:{copy}", FLOAT32).encode(PROMPTS[:1])[0]
    np.testing.assert_array_equal(found, encoder.encode(PROMPTS[:1])[0])


def test_a_language_model_and_a_flat_config_give_the_same_encoder(model, folder, encoder, tmp_path):
    model.model.language_model.save_pretrained(tmp_path / "text")
    save_tokenizer(tmp_path / "text")
    # The published config.json has the language model's sizes at its top level.
    flat = shutil.copytree(folder, tmp_path / "flat")
    config = json.loads((flat / "config.json").read_text())
    config |= config.pop("text_config") | {"model_type": "qwen2_5_vl"}
    config |= {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    del config["rope_parameters"]
    (flat / "config.json").write_text(json.dumps(config))
    expected = encoder.encode(PROMPTS[:1])[0]
    for where in (tmp_path / "text", flat):
        found = registry.load_text_encoder(f"qwen2.5-vl:{where}", FLOAT32)
        np.testing.assert_array_equal(found.encode(PROMPTS[:1])[0], expected)


def test_the_manifest_entry_and_the_published_dtype(folder):
    half = registry.load_text_encoder(f"qwen2.5-vl:{folder}", registry.Options(device="cpu"))
    entry = half.manifest_entry()
    assert (entry["family"], entry["tokens"], entry["dim"], entry["dtype"]) == ("qwen2.5-vl", 1000, WIDTH, "float16")
    rows = half.encode(PROMPTS[:1])[0]
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, rows.astype(np.float16))


def test_weights_with_unknown_names_are_refused(folder, tmp_path):
    copy = with_names(folder, tmp_path / "copy", lambda n: "other." + n)
    with pytest.raises(UserError, match=r"lacks weight 'embed_tokens.weight' \(50 such\)"):
        registry.load_text_encoder(f"qwen2.5-vl:{copy}", FLOAT32)


def test_a_tokenizer_without_the_chats_tokens_is_refused(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"256": {"content": "<|endoftext|>", "special": True}}
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"makes 12 tokens of <\|im_start\|>, expected 1"):
        registry.load_text_encoder(f"qwen2.5-vl:{copy}", FLOAT32)
