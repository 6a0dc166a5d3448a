"""Encoders by name, their folders and downloads, and a machine without the extra "torch"."""

import numpy as np
import pytest
from encoder_files import write_json

from jworld.data import images
from jworld.data.records import text_store
from jworld.encoders import registry, sources
from jworld.utils.errors import UserError


def test_encoders_without_weights():
    words = registry.load_text_encoder("hashed-words:8")
    np.testing.assert_array_equal(words.encode(["", "a b"])[1], text_store.hashed_words("a b", dim=8))
    assert words.manifest_entry() == {"kind": "hashed-words", "family": "hashed-words", "source": "8", "dim": 8}
    assert registry.load_text_encoder("hashed-words").dim == 64
    frames = np.random.default_rng(0).integers(0, 256, (2, 48, 64, 3), np.uint8)
    thumbnail = registry.load_image_encoder("thumbnail")
    np.testing.assert_array_equal(thumbnail.encode(frames)[1], images.thumbnail_tokens(frames[1]))
    assert thumbnail.manifest_entry() == {"kind": "thumbnail", "family": "thumbnail", "dim": 12, "tokens": 12}


def test_none_has_no_rows():
    none = registry.load_text_encoder("none:1472")
    assert [states.shape for states in none.encode(["", "a"])] == [(0, 1472), (0, 1472)]
    assert (none.family, registry.load_text_encoder("none").dim) == ("none", 0)
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    assert registry.load_image_encoder("none:1152").encode(frames).shape == (2, 0, 1152)


def test_invalid_specs_are_refused():
    with pytest.raises(UserError, match=r"text encoder 'clip' is unknown: choose one of qwen2.5-vl, t5-matrix"):
        registry.load_text_encoder("clip:/models/clip")
    with pytest.raises(UserError, match="image encoder 't5-cosmos' is unknown: choose one of siglip, thumbnail, none"):
        registry.load_image_encoder("t5-cosmos:/models/t5")
    with pytest.raises(UserError, match=r"text encoder 'qwen2.5-vl' needs its model: write qwen2.5-vl:FOLDER"):
        registry.load_text_encoder("qwen2.5-vl")
    with pytest.raises(UserError, match="width 'wide' of an encoder without weights is not an integer from 1 to 65536"):
        registry.load_text_encoder("hashed-words:wide")


def test_options_are_checked():
    with pytest.raises(UserError, match="encoder dtype is 'fp16', expected one of float32, float16, bfloat16"):
        registry.Options(dtype="fp16")
    with pytest.raises(UserError, match="encoder batch size is 0, expected at least 1"):
        registry.Options(batch_size=0)


@pytest.mark.parametrize("kind", ["qwen2.5-vl", "t5-matrix", "t5-cosmos", "byt5-glyph"])
def test_without_torch_the_extra_is_named(without_torch, tmp_path, kind):
    with pytest.raises(UserError, match=r'need torch, which is not installed: pip install "jworld\[torch\]"'):
        registry.load_text_encoder(f"{kind}:{tmp_path}")
    with pytest.raises(UserError, match=r'pip install "jworld\[torch\]"'):
        registry.load_image_encoder(f"siglip:{tmp_path}")


@pytest.mark.parametrize("kind", ["qwen2.5-vl", "t5-matrix", "t5-cosmos"])
def test_an_absent_folder_and_an_absent_device_are_named(tmp_path, kind):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match=f"encoder folder {tmp_path}/none is absent"):
        registry.load_text_encoder(f"{kind}:{tmp_path}/none")
    with pytest.raises(UserError, match="encoder device is 'warp', expected cpu, cuda,"):
        registry.load_text_encoder(f"{kind}:{tmp_path}", registry.Options(device="warp"))


PIPELINE = [
    "model_index.json",
    "README.md",
    "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "text_encoder/pytorch_model.bin",
    "tokenizer/spiece.model",
    "tokenizer/old/spiece.model",
    "transformer/diffusion_pytorch_model.safetensors",
]


def test_only_the_files_of_an_encoder_are_needed():
    assert sources.needed(PIPELINE, ("text_encoder", "tokenizer")) == [
        "text_encoder/config.json",
        "text_encoder/model-00001-of-00002.safetensors",
        "text_encoder/model.safetensors.index.json",
        "tokenizer/spiece.model",
    ]
    flat = ["config.json", "pytorch_model.bin", "tf_model.h5", "spiece.model", "merges.txt", "onnx/model.onnx"]
    expected = ["config.json", "merges.txt", "pytorch_model.bin", "spiece.model"]
    assert sources.needed(flat, ("text_encoder", "tokenizer")) == expected
    assert sources.needed([*flat, "model.safetensors"]) == [
        "config.json",
        "merges.txt",
        "model.safetensors",
        "spiece.model",
    ]


@pytest.fixture
def hub(monkeypatch):
    """The hub's client without a network; calls of its two functions are recorded."""
    client = pytest.importorskip("huggingface_hub")
    calls = []

    def unreachable(name, **_):
        calls.append(("list", name))
        raise ConnectionError("no network\nfurther lines")

    def not_cached(name, **options):
        calls.append(("download", name, options))
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr(client, "list_repo_files", unreachable)
    monkeypatch.setattr(client, "snapshot_download", not_cached)
    return client, calls


def test_a_hub_id_that_cannot_be_reached_is_named(hub):
    with pytest.raises(UserError, match=r"google-t5/t5-11b is neither a folder .* the hub \(no network\): check the"):
        sources.open_folder("google-t5/t5-11b")


def test_a_hub_id_is_downloaded_or_taken_from_the_cache(hub, monkeypatch, tmp_path):
    client, calls = hub

    def download(name, **options):
        calls.append(("download", name, options))
        return str(tmp_path)

    monkeypatch.setattr(client, "snapshot_download", download)
    assert sources.open_folder("THUDM/CogVideoX-2b", parts=("text_encoder", "tokenizer")) == tmp_path
    assert calls == [
        ("list", "THUDM/CogVideoX-2b"),
        ("download", "THUDM/CogVideoX-2b", {"local_files_only": True}),
    ]
    calls.clear()
    monkeypatch.setattr(client, "list_repo_files", lambda name: PIPELINE)
    assert sources.open_folder("THUDM/CogVideoX-2b", parts=("text_encoder", "tokenizer")) == tmp_path
    expected = sources.needed(PIPELINE, ("text_encoder", "tokenizer"))
    assert calls == [("download", "THUDM/CogVideoX-2b", {"allow_patterns": expected})]


def test_the_fingerprint_covers_only_weights_and_config(tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "t5"})
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(3 * 2**20))
    first = sources.fingerprint(tmp_path)
    (tmp_path / "README.md").write_text("read me")
    (tmp_path / "pytorch_model.bin").write_bytes(b"the same in another format")
    assert sources.fingerprint(tmp_path) == first
    found = set()
    for position in (0, 3 * 2**20 - 1):
        changed = bytearray(3 * 2**20)
        changed[position] = 1
        weights.write_bytes(changed)
        found.add(sources.fingerprint(tmp_path))
    weights.write_bytes(bytes(3 * 2**20 + 1))
    found.add(sources.fingerprint(tmp_path))
    weights.write_bytes(bytes(3 * 2**20))
    write_json(tmp_path / "config.json", {"model_type": "mt5"})
    found.add(sources.fingerprint(tmp_path))
    assert len(found | {first}) == 5
