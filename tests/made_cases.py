"""Cases with the layout of golden cases that need no recorded numbers: they are made when a test asks for them."""

import atexit
import contextlib
import functools
import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import golden_cases
import numpy as np
import safetensors.numpy

WORLDPLAY = golden_cases.DEFAULT_ROOT / "worldplay"
#: Names of tensors that the plain base model of WorldPlay lacks.
ACTIONS = ("action_in.", "img_attn_prope_proj.")
#: Width that diffusers' class has in its code, here of a small network.
GLYPH_WIDTH = 10


@functools.cache
def base() -> golden_cases.GoldenCase:
    """Return the action model's checkpoint without its action parameters: the plain HunyuanVideo-1.5 layout."""
    action = golden_cases.GoldenCase(WORLDPLAY / "transformer_ar_train")
    config = json.loads((action.path / "config.json").read_text()) | {"action_parameters": False}
    weights = {name: x for name, x in action.weights.items() if not any(part in name for part in ACTIONS)}
    return _write("base", config, weights=weights)


@functools.cache
def hunyuan_diffusers() -> golden_cases.GoldenCase:
    """Return random weights of diffusers' HunyuanVideo15Transformer3DModel, with inputs and its own outputs.

    Sample 0 has a full prompt and no glyphs, sample 1 has padding in both. Patch size, rotary axes and theta are unlike
    the published ones, so that none is taken for granted.
    """
    import diffusers
    import torch

    with small_glyphs():
        model = random_model(
            diffusers.HunyuanVideo15Transformer3DModel,
            in_channels=9,
            out_channels=4,
            num_attention_heads=4,
            attention_head_dim=12,
            num_layers=2,
            num_refiner_layers=2,
            patch_size=2,
            text_embed_dim=20,
            text_embed_2_dim=14,
            image_embed_dim=18,
            rope_theta=100.0,
            rope_axes_dim=(2, 4, 6),
        ).eval()
    inputs = {
        "hidden_states": torch.randn(2, 9, 3, 6, 4),
        "timestep": torch.tensor([900.0, 250.0]),
        "encoder_hidden_states": torch.randn(2, 7, 20),
        "encoder_attention_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3]),
        "encoder_hidden_states_2": torch.randn(2, 5, 14),
        "encoder_attention_mask_2": torch.tensor([[0] * 5, [1] * 3 + [0] * 2]),
        "image_embeds": torch.randn(2, 4, 18),
    }
    with torch.inference_mode():
        sample = model(**inputs, return_dict=False)[0]
        without_image = inputs | {"image_embeds": torch.zeros(2, 4, 18)}
        outputs = {"sample": sample, "sample_t2v": model(**without_image, return_dict=False)[0]}
    config = {
        "transformer_config": json.loads(model.to_json_string()),
        "glyph_hidden_dim": GLYPH_WIDTH,
        "dtype": "float32",
    }
    tensors = {"weights": model.state_dict(), "inputs": inputs, "outputs": outputs}
    arrays = {name: {key: value.numpy() for key, value in group.items()} for name, group in tensors.items()}
    return _write("hunyuan_diffusers", config, **arrays)


def random_model(kind: type[Any], **settings: Any) -> Any:
    """Return a model of a class of diffusers with random weights."""
    import torch

    torch.manual_seed(0)
    model = kind(**settings)
    with torch.no_grad():
        # Norms and biases too: their first values are ones and zeros, which hide mistakes.
        for value in model.parameters():
            value.copy_(value + 0.1 * torch.randn_like(value))
    return model


@contextlib.contextmanager
def small_glyphs() -> Iterator[None]:
    """Replace the width that diffusers' class has in its code by `GLYPH_WIDTH`."""
    from diffusers.models.transformers import transformer_hunyuan_video15

    kind = transformer_hunyuan_video15.HunyuanVideo15ByT5TextProjection
    with mock.patch.object(
        transformer_hunyuan_video15, kind.__name__, lambda inside, hidden, outside: kind(inside, GLYPH_WIDTH, outside)
    ):
        yield


@functools.cache
def _root() -> pathlib.Path:
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return pathlib.Path(folder)


def _write(name: str, config: Mapping[str, Any], **arrays: Mapping[str, np.ndarray]) -> golden_cases.GoldenCase:
    folder = _root() / "worldplay" / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    for file, tensors in arrays.items():
        safetensors.numpy.save_file(
            {key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / f"{file}.safetensors"
        )
    return golden_cases.GoldenCase(folder)
