"""Folders of Gemma-3 made by transformers' own classes, in and out by the commands: equal logits and greedy tokens."""

import json
import math
import pathlib
from typing import Any

import gemma_folders
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch

import jworld
from conversion import __main__ as conversion
from conversion import engine, gemma3, gemma3_config, importing, theworld
from jworld import systems
from jworld.data.conversations import chat
from jworld.utils import config as run_config
from jworld.utils import pretrained

KINDS = {True: "Gemma3ForConditionalGeneration", False: "Gemma3ForCausalLM"}


@pytest.fixture(scope="module", params=[True, False], ids=["vision", "text"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[bool, pathlib.Path]:
    """Write a folder, import it, and export it without further options."""
    folder = tmp_path_factory.mktemp("gemma")
    source = gemma_folders.write(folder / "source", vision=request.param)
    conversion.main(["import", str(source), "--output", str(folder / "ours"), "--config.model.dtype=float32"])
    conversion.main(["verify", str(folder / "ours"), str(source)])
    conversion.main(["export", str(folder / "ours"), "--output", str(folder / "theirs")])
    conversion.main(["verify", str(folder / "ours"), str(folder / "theirs")])
    return request.param, folder


def test_an_export_loads_and_computes_the_same(folders: tuple[bool, pathlib.Path]) -> None:
    vision, folder = folders
    found = gemma_folders.load(folder / "theirs", KINDS[vision])
    expected = gemma_folders.load(folder / "source", KINDS[vision])
    given = gemma_folders.inputs(image=vision)
    with torch.inference_mode():
        assert torch.equal(found(**given).logits, expected(**given).logits)
        text = gemma_folders.inputs(image=False)["input_ids"]
        tokens = [each.generate(text, max_new_tokens=8, do_sample=False) for each in (found, expected)]
    assert torch.equal(*tokens)
    # Both version 4 and version 5 of transformers read these names, and only version 5 some of the others.
    names = set(safetensors.numpy.load_file(folder / "theirs" / "model.safetensors"))
    begins = (
        ("language_model.model.", "vision_tower.vision_model.", "multi_modal_projector.") if vision else ("model.",)
    )
    assert all(name.startswith(begins) for name in names)


def test_answers_have_the_same_greedy_tokens(folders: tuple[bool, pathlib.Path]) -> None:
    vision, folder = folders
    run, prompt, ids = jworld.load(folder / "ours"), "which way did the camera turn?", gemma_folders.ids()
    session = run.system.session(run.model, run.encoders)
    session.reset([], prompt)
    found = [token for _ in range(12) if (token := session.step()) is not None]
    tokens = run.encoders.tokenizer.encode([chat.Turn("user", prompt)], images=0, is_open=True).tokens
    model = gemma_folders.load(folder / "theirs", KINDS[vision])
    ends = [ids[chat.EOS], ids[chat.END_OF_TURN]]
    with torch.inference_mode():
        given = torch.from_numpy(tokens.astype(np.int64))[None]
        theirs = model.generate(given, max_new_tokens=12, do_sample=False, eos_token_id=ends)
    expected = theirs[0, len(tokens) :].tolist()
    assert found == [token for token in expected if token not in ends]
    assert len(expected) == 12 or expected[-1] in ends


def test_tokens_that_end_answers_are_exported(tmp_path: pathlib.Path) -> None:
    """A folder without generation_config.json gets one, so that other programs stop where this one does."""
    source = gemma_folders.write(tmp_path / "source", vision=False)
    (source / "generation_config.json").unlink()
    conversion.main(["import", str(source), "--output", str(tmp_path / "ours")])
    conversion.main(["export", str(tmp_path / "ours"), "--output", str(tmp_path / "theirs")])
    ids = gemma_folders.ids()
    model = gemma_folders.load(tmp_path / "theirs", KINDS[False])
    assert model.generation_config.eos_token_id == [ids[chat.EOS], ids[chat.END_OF_TURN]]
    assert model.generation_config.pad_token_id == ids[chat.PAD]


def mistake(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        conversion.main(list(command))
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def change(folder: pathlib.Path, **tensors: np.ndarray) -> None:
    """Add tensors to the weights of a folder, or replace them."""
    path = folder / "model.safetensors"
    named = {name.replace("__", "."): value for name, value in tensors.items()}
    safetensors.numpy.save_file(safetensors.numpy.load_file(path) | named, path)


def test_a_head_is_compared_with_the_embedding(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = gemma_folders.write(tmp_path / "source", vision=False)
    embedding = safetensors.numpy.load_file(source / "model.safetensors")["model.embed_tokens.weight"]
    change(source, lm_head__weight=embedding)
    conversion.main(["import", str(source), "--output", str(tmp_path / "equal")])
    other = embedding.copy()
    other[[3, 7], 5] += 1e-3
    change(source, lm_head__weight=other)
    text = mistake(capsys, "import", str(source), "--output", str(tmp_path / "ours"))
    assert "lm_head.weight [491, 64] differs from model.embed_tokens.weight in 2 of 491 rows" in text
    assert "give weights with a tied head" in text
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("place", ["text_config", "whole"])
def test_a_config_with_an_untied_head(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    source = gemma_folders.write(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (config if place == "whole" else config[place])["tie_word_embeddings"] = False
    (source / "config.json").write_text(json.dumps(config))
    text = mistake(capsys, "import", str(source), "--output", str(tmp_path / "ours"))
    assert "tie_word_embeddings is False, only True is supported" in text


BYTES = np.zeros((8, 1), np.uint8)
#: Kind of quantization -> its tensors, as the programs write them, and how it is named.
QUANTIZED: dict[str, tuple[dict[str, np.ndarray], dict[str, Any], str]] = {
    "bnb4": (
        {
            "q_proj.weight": BYTES,
            "q_proj.weight.absmax": np.zeros(2, np.float32),
            "q_proj.weight.quant_map": np.zeros(16, np.float32),
            "q_proj.weight.quant_state.bitsandbytes__nf4": BYTES,
        },
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "quantized with bitsandbytes, 4 bits",
    ),
    "bnb8": (
        {"q_proj.weight": np.zeros((8, 8), np.int8), "q_proj.SCB": np.zeros(8, np.float32)},
        {"quant_method": "bitsandbytes", "load_in_8bit": True},
        "quantized with bitsandbytes, 8 bits",
    ),
    "gptq": (
        {name: np.zeros((2, 8), np.int32) for name in ("q_proj.qweight", "q_proj.qzeros", "q_proj.g_idx")},
        {"quant_method": "gptq", "bits": 4},
        "quantized with GPTQ, 4 bits",
    ),
    "awq": (
        {name: np.zeros((2, 8), np.int32) for name in ("q_proj.qweight", "q_proj.qzeros")},
        {"quant_method": "awq", "bits": 4},
        "quantized with AWQ, 4 bits",
    ),
    "compressed": (
        {"q_proj.weight_packed": np.zeros((8, 1), np.int32), "q_proj.weight_scale": np.zeros((8, 1), np.float32)},
        {"quant_method": "compressed-tensors"},
        "quantized with compressed-tensors",
    ),
    "mlx": (
        {"q_proj.weight": np.zeros((8, 1), np.uint32), "q_proj.scales": np.zeros((8, 1), np.float16)},
        {},
        "quantized with MLX",
    ),
    "fp8": (
        {
            "q_proj.weight": np.zeros((8, 8), ml_dtypes.float8_e4m3fn),
            "q_proj.weight_scale_inv": np.zeros((1, 1), np.float32),
        },
        {"quant_method": "fp8"},
        "float8 with scales",
    ),
    "other": (
        {"q_proj.weight": np.zeros((8, 8), np.int8)},
        {"quant_method": "eetq"},
        "quantized with eetq",
    ),
}


@pytest.mark.parametrize("place", ["source", "base"])
@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantized_files_are_named(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], kind: str, place: str
) -> None:
    tensors, section, named = QUANTIZED[kind]
    quantized = tmp_path / "quantized"
    quantized.mkdir()
    layer = "model.layers.0.self_attn."
    described: dict[str, Any] = {}
    data = b""
    for name, value in tensors.items():
        bits = 8 * value.itemsize
        code = "F8_E4M3" if value.dtype == ml_dtypes.float8_e4m3fn else f"{value.dtype.kind.upper()}{bits}"
        offsets = [len(data), len(data) + value.nbytes]
        described[layer + name] = {"dtype": code, "shape": list(value.shape), "data_offsets": offsets}
        data += value.tobytes()
    header = json.dumps(described).encode()
    (quantized / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    (quantized / "config.json").write_text(json.dumps({"model_type": "gemma3_text", "quantization_config": section}))
    command = [str(quantized)]
    if place == "base":
        source = tmp_path / "source"
        source.mkdir()
        weights = {"world_projector.projection.weight": np.zeros((64, 16), np.float32)}
        safetensors.numpy.save_file(weights, source / "model.safetensors")
        command = [str(source), "--base", str(quantized)]
    text = mistake(capsys, "import", *command, "--output", str(tmp_path / "ours"))
    assert f"its weights are {named} ('{layer}" in text
    assert "expected plain weights: give the published bfloat16 files" in text


def test_adapters_as_a_base_are_named(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    import peft

    model = gemma_folders.model(vision=False)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], r=2)).save_pretrained(tmp_path / "lora")
    source = tmp_path / "source"
    source.mkdir()
    weights = {"world_projector.projection.weight": np.zeros((64, 16), np.float32)}
    safetensors.numpy.save_file(weights, source / "model.safetensors")
    text = mistake(capsys, "import", str(source), "--base", str(tmp_path / "lora"), "--output", str(tmp_path / "ours"))
    assert f"--base {tmp_path / 'lora'}: has adapters (LoRA) alone, expected whole weights" in text
    assert "python -m conversion fuse CHECKPOINT" in text


def test_precision_is_said(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = gemma_folders.write(tmp_path / "source", vision=False)
    said = "the weights are float32, and the model computes with them in bfloat16: --config.model.dtype=float32"
    conversion.main(["import", str(source), "--output", str(tmp_path / "narrow")])
    assert said in capsys.readouterr().out
    conversion.main(["import", str(source), "--output", str(tmp_path / "wide"), "--config.model.dtype=float32"])
    assert said not in capsys.readouterr().out
    conversion.main(["import", str(source), "--output", str(tmp_path / "half"), "--dtype", "bfloat16"])
    assert said not in capsys.readouterr().out


#: Published size -> the entries of its config.json that differ from those of the class, and its parameters.
SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "270m": (
        {
            "hidden_size": 640,
            "intermediate_size": 2048,
            "num_hidden_layers": 18,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "sliding_window": 512,
            "vocab_size": 262144,
        },
        268_098_176,
    ),
    "1b": (
        {
            "hidden_size": 1152,
            "intermediate_size": 6912,
            "num_hidden_layers": 26,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "head_dim": 256,
            "sliding_window": 512,
            "vocab_size": 262144,
        },
        999_885_952,
    ),
    "4b": (
        {
            "hidden_size": 2560,
            "intermediate_size": 10240,
            "num_hidden_layers": 34,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        4_300_079_472,
    ),
    "12b": (
        {
            "hidden_size": 3840,
            "intermediate_size": 15360,
            "num_hidden_layers": 48,
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        12_187_325_040,
    ),
    "27b": (
        {
            "head_dim": 128,
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "num_hidden_layers": 62,
            "num_attention_heads": 32,
            "num_key_value_heads": 16,
            "query_pre_attn_scalar": 168,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
        },
        27_432_406_640,
    ),
}
#: Size -> a variant of the recipe.
VARIANTS = {
    "270m": "language_270m",
    "1b": "language_1b",
    "4b": "language",
    "12b": "projection_12b",
    "27b": "lora_27b",
}
VISION = {
    "hidden_size": 1152,
    "image_size": 896,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "vision_use_head": False,
}


@pytest.mark.parametrize("size", SIZES)
def test_published_sizes(size: str) -> None:
    """Names and shapes of all tensors are those of transformers' class, and the recipe has the same sizes."""
    text, parameters = SIZES[size]
    style = "text" if size in ("270m", "1b") else "transformers5"
    config = {"model_type": "gemma3_text", **text}
    with pretrained.quiet() as transformers, torch.device("meta"):
        if style == "text":
            model = transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**text))
        else:
            config = {"model_type": "gemma3", "text_config": text, "vision_config": VISION}
            model = transformers.Gemma3ForConditionalGeneration(transformers.Gemma3Config(**config))
    expected = {name: tuple(value.shape) for name, value in model.named_parameters() if name not in gemma3.HEADS}
    recipe = run_config.load_recipe(f"configs/theworld.py:{VARIANTS[size]}")
    with recipe.unlocked():
        recipe.model.world = None
        recipe.data.clip.world_size = 0
        recipe.model.vocabulary = text.get("vocab_size", 262208)
    system = systems.create(recipe)
    gemma = system.model_config.gemma
    facts = gemma3_config.from_config(config, "config.json")
    assert {key: getattr(gemma, key) for key in facts} == facts
    shapes = {path: leaf.shape for path, leaf in importing.abstract_params(system).items() if "lora" not in path}
    places = engine.plan(shapes, theworld.rules(system.model_config, style))
    found = {name: place.source_shape for name, place in places.items()}
    assert found == expected
    assert sum(math.prod(shape) for shape in found.values()) == parameters
