"""Gemma-3's config.json as transformers reads it, and exported weights in the class of transformers."""

import copy
import json
import pathlib
import shutil
from typing import Any

import golden_cases
import numpy as np
import pytest

from conversion import __main__ as conversion
from conversion import gemma3, gemma3_config
from jworld.models.gemma3.config import Gemma3Config
from jworld.utils import errors, pretrained

CASE = golden_cases.GoldenCase(golden_cases.DEFAULT_ROOT / "theworld" / "gemma3_text")
#: The config.json of google/gemma-3-4b-it: keys with the values of the class are left out.
PUBLISHED = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "initializer_range": 0.02,
    "mm_tokens_per_image": 256,
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
    "vision_config": {
        "hidden_size": 1152,
        "image_size": 896,
        "intermediate_size": 4304,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
        "patch_size": 14,
        "vision_use_head": False,
    },
}


def changed(**text: Any) -> dict[str, Any]:
    """Return the published config with changes in its text section; None removes a key."""
    config = copy.deepcopy(PUBLISHED)
    config["text_config"] = {key: value for key, value in (config["text_config"] | text).items() if value is not None}
    return config


def test_the_published_config() -> None:
    given = copy.deepcopy(PUBLISHED)
    assert Gemma3Config(**gemma3_config.from_config(given, "config.json")) == Gemma3Config()
    assert given == PUBLISHED


def test_keys_that_are_left_out_have_the_values_of_the_class() -> None:
    """A model without scaled positions says nothing of them, and one with the largest window nothing of its window."""
    facts = gemma3_config.from_config(changed(rope_scaling=None, sliding_window=None), "config.json")
    assert (facts["rope_factor"], facts["window"], facts["head_dim"]) == (1.0, 4096, 256)
    facts = gemma3_config.from_config(changed(rope_scaling={"type": "linear", "factor": 2.0}), "config.json")
    assert facts["rope_factor"] == 2.0
    facts = gemma3_config.from_config(changed(sliding_window_pattern=2), "config.json")
    assert facts["pattern"] == ("sliding", "full")


@pytest.mark.parametrize("for_text", [False, True], ids=["text_config", "text alone"])
@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"rope_scaling": {"type": "linear", "factor": 4}},
        {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
        {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 4.0}}},
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
    ],
    ids=["version 4", "older key", "with bases", "version 5 in part", "version 5"],
)
def test_spellings_of_scaled_positions(spelling: dict[str, Any], for_text: bool) -> None:
    config = changed(**({"rope_scaling": None} | spelling))
    if for_text:
        config = {"model_type": "gemma3_text"} | config["text_config"]
    facts = gemma3_config.from_config(config, "config.json")
    assert {key: value for key, value in facts.items() if "rope" in key} == {
        "rope_theta": 1e6,
        "rope_factor": 4.0,
        "local_rope_theta": 1e4,
        "local_rope_factor": 1.0,
    }


@pytest.mark.parametrize(
    "text, whole, message",
    [
        (
            {"rope_scaling": {"factor": 4.0}},
            {},
            "rope_scaling is {'factor': 4.0}, expected one scaling with a rope_type",
        ),
        (
            {"rope_scaling": None, "rope_parameters": {"rope_type": "linear", "factor": 4.0}},
            {},
            "rope_parameters has factor, rope_type, expected full_attention and sliding_attention",
        ),
        (
            {"rope_scaling": None},
            {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
            "rope_scaling is outside text_config, expected it there",
        ),
    ],
    ids=["no type", "no kinds of layers", "outside"],
)
def test_scaled_positions_that_would_be_ignored(text: dict[str, Any], whole: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UserError, match=f"config.json: {message}"):
        gemma3_config.from_config(changed(**text) | whole, "config.json")


def test_an_absent_section_sets_nothing() -> None:
    assert gemma3_config.from_config({"model_type": "gemma3", "hidden_size": 3}, "config.json") == {}
    text = gemma3_config.from_config({"text_config": {"hidden_size": 64}}, "config.json")
    assert text["width"] == 64
    assert "vision_width" not in text


@pytest.mark.parametrize(
    "change, message",
    [
        ({"hidden_size": "wide"}, r"\(Field 'hidden_size' expected int, got str .*\): download the file again"),
        ({"num_attention_heads": 3}, r"\(The hidden size \(2560\) is not a multiple .*\): download the file again"),
        ({"layer_types": ["full_attention"] * 3}, r"\(`num_hidden_layers` \(34\) must be equal .*\): download"),
        ({"layer_types": ["chunked_attention"] * 34}, "layer_types has chunked_attention, expected"),
        ({"attention_bias": True}, "attention_bias is True, only False is supported"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is True, only False is supported"),
    ],
)
def test_other_values_are_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UserError, match=message) as caught:
        gemma3_config.from_config(changed(**change), "config.json")
    assert str(caught.value).startswith("config.json")
    assert "\n" not in str(caught.value)


def test_a_written_config_is_read_by_transformers() -> None:
    cfg = Gemma3Config(**gemma3_config.from_config(CASE.config, "config.json"), vocabulary=160)
    written = json.loads(json.dumps(gemma3_config.to_config(cfg)))
    theirs = pretrained.library().Gemma3Config.from_dict(copy.deepcopy(written))
    assert theirs.text_config.query_pre_attn_scalar == 24
    assert theirs.text_config.rope_parameters["full_attention"]["factor"] == 8.0
    assert gemma3_config.from_config(written, "x") == gemma3_config.from_config(CASE.config, "x")
    # Exports of earlier releases have a number with a point.
    written["text_config"]["query_pre_attn_scalar"] = 24.0
    assert gemma3_config.from_config(written, "x")["query_scale"] == 24.0


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("gemma")
    shutil.copy(CASE.path / "weights.safetensors", folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CASE.config))
    conversion.main(["import", str(folder), "--output", str(folder / "ours")])
    return folder / "ours"


@pytest.mark.parametrize("style", [style for style in gemma3.STYLES if gemma3.STYLES[style].vision is not None])
def test_exports_compute_the_same_in_transformers(imported: pathlib.Path, tmp_path: pathlib.Path, style: str) -> None:
    torch = pytest.importorskip("torch")
    conversion.main(["export", str(imported), "--layout", style, "--output", str(tmp_path / "theirs")])
    with pretrained.quiet() as transformers:
        model, report = transformers.Gemma3ForConditionalGeneration.from_pretrained(
            str(tmp_path / "theirs"), attn_implementation="eager", output_loading_info=True, local_files_only=True
        )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    inputs = {name: torch.from_numpy(CASE.inputs[name]) for name in ("input_ids", "attention_mask")}
    with torch.inference_mode():
        found = model(**inputs).logits.numpy()
    valid = CASE.inputs["attention_mask"].astype(bool)
    np.testing.assert_allclose(found[valid], CASE.outputs["logits"][valid], rtol=1e-3, atol=1e-4)
