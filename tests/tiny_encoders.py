"""Text and image encoders of WorldPlay with a few thousand random weights, in the published layouts."""

import json
import pathlib

import torch
import transformers

from jworld.encoders import glyph

TEXT_DIM, GLYPH_DIM, VISION_DIM, VISION_TOKENS = 16, 8, 12, 4
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_IMAGE_SIZE, _PATCH = 28, 14
_BYTES = 384  # of byT5's vocabulary
_COLORS, _FONTS = {"white": 0, "black": 1}, {"en-Anton-Regular": 0}


def save(folder: pathlib.Path) -> dict[str, str]:
    """Write all three below `folder`; -> option -> "KIND:FOLDER"."""
    torch.manual_seed(0)
    return {
        "--text-encoder": f"qwen2.5-vl:{_save_qwen(folder / 'qwen')}",
        "--glyph-encoder": f"byt5-glyph:{_save_glyph(folder / 'glyph')}",
        "--image-encoder": f"siglip:{_save_siglip(folder / 'siglip')}",
    }


def _write(path: pathlib.Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def _save_qwen(folder: pathlib.Path) -> pathlib.Path:
    config = transformers.Qwen2_5_VLTextConfig(
        vocab_size=256 + len(_SPECIAL),
        hidden_size=TEXT_DIM,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
    )
    transformers.Qwen2_5_VLTextModel(config).save_pretrained(folder)
    # Byte-level BPE without merges: every byte is a token, written as a printable letter.
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    _write(folder / "vocab.json", {letters[byte]: byte for byte in range(256)})
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {str(256 + i): {"content": name, "special": True} for i, name in enumerate(_SPECIAL)}
    settings = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": special, "pad_token": _SPECIAL[0]}
    _write(folder / "tokenizer_config.json", settings)
    return folder


def _save_glyph(folder: pathlib.Path) -> pathlib.Path:
    added = len(_COLORS) + len(_FONTS)
    config = transformers.T5Config(
        vocab_size=_BYTES + added, d_model=GLYPH_DIM, d_kv=4, d_ff=16, num_layers=1, num_heads=2
    )
    weights = transformers.T5EncoderModel(config).get_encoder().state_dict()
    _write(folder / glyph.CONFIG, config.to_dict() | {"vocab_size": _BYTES})
    _write(folder / glyph.COLORS, _COLORS)
    _write(folder / glyph.FONTS, _FONTS)
    (folder / glyph.WEIGHTS).parent.mkdir(parents=True)
    state = {f"{glyph.WEIGHTS_PREFIX}{name}": value for name, value in weights.items()}
    torch.save({"state_dict": state}, folder / glyph.WEIGHTS)
    return folder


def _save_siglip(folder: pathlib.Path) -> pathlib.Path:
    config = transformers.SiglipVisionConfig(
        hidden_size=VISION_DIM,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=_IMAGE_SIZE,
        patch_size=_PATCH,
    )
    transformers.SiglipVisionModel(config).save_pretrained(folder / "image_encoder")
    preprocessor = {
        "image_processor_type": "SiglipImageProcessor",
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": _IMAGE_SIZE, "width": _IMAGE_SIZE},
    }
    _write(folder / "feature_extractor" / "preprocessor_config.json", preprocessor)
    return folder
