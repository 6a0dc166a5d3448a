"""Files of adapters (LoRA) of other programs: every way to name tensors and to state alpha, and what is refused."""

import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import adapted
import numpy as np
import pytest
import safetensors.numpy
import torch

from conversion import __main__ as conversion
from conversion import adapter_files, engine, families, importing, selecting, sources
from jworld.utils import errors

RNG = np.random.default_rng(3)
LAYERS = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn1.to_out.0")
RANK = 4


@pytest.fixture(scope="module")
def download() -> adapted.Download:
    return adapted.matrix()


@pytest.fixture(scope="module")
def base(download: adapted.Download, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return download.write(tmp_path_factory.mktemp("adapters") / "base")


def matrices(download: adapted.Download) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Draw A and B for every layer."""
    shapes = {layer: download.weights[f"{layer}.weight"].shape for layer in LAYERS}
    draw = np.random.default_rng(3).normal
    return {
        layer: (draw(size=(RANK, inputs)).astype(np.float32), draw(size=(outputs, RANK)).astype(np.float32))
        for layer, (outputs, inputs) in shapes.items()
    }


def named(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], style: str) -> dict[str, np.ndarray]:
    """Name the matrices; `style` has {layer} and {flat} for the layer, and {A|x} for the matrix."""
    found = {}
    for layer, both in pairs.items():
        for number, value in enumerate(both):
            name = re.sub(r"\{(\w+)\|(\w+)\}", lambda match, n=number: match.group(n + 1), style)
            found[name.format(layer=layer, flat=layer.replace(".", "_"))] = value
    return found


STYLES = {
    "peft": "base_model.model.{layer}.lora_{A|B}.weight",
    "peft_in_pipeline": "base_model.model.transformer.{layer}.lora_{A|B}.weight",
    "diffusers": "transformer.{layer}.lora_{A|B}.weight",
    "no_prefix": "{layer}.lora_{A|B}.weight",
    "comfy": "diffusion_model.{layer}.lora_{A|B}.weight",
    "comfy_model": "model.diffusion_model.{layer}.lora_{A|B}.weight",
    "default": "{layer}.lora_{A|B}.default.weight",
    "peft_default": "base_model.model.{layer}.lora_{A|B}.default.weight",
    "own_name": "{layer}.lora_{A|B}.my_style.weight",
    "data_parallel": "module.{layer}.lora_{A|B}.weight",
    "compiled": "_orig_mod.{layer}.lora_{A|B}.weight",
    "bare": "{layer}.lora_{A|B}",
    "kohya_dots": "{layer}.lora_{down|up}.weight",
    "kohya": "lora_unet_{flat}.lora_{down|up}.weight",
    "kohya_transformer": "lora_transformer_{flat}.lora_{down|up}.weight",
    "lycoris": "lycoris_{flat}.lora_{down|up}.weight",
    "old_diffusers": "transformer.{layer}.lora.{down|up}.weight",
}


def merged(base: pathlib.Path, path: pathlib.Path, **options: Any) -> selecting.Selected:
    """Plan an import with adapters; -> the tensors to read while the files are open."""
    source = sources.open_source(base)
    chosen = selecting.Selection(adapters=str(path), **options)
    return importing.make_plan(source, importing.Options(selection=chosen)).source


def assert_factor(
    base: pathlib.Path, path: pathlib.Path, download: adapted.Download, factor: Any, **options: Any
) -> str:
    """Compare every merged matrix with W + factor B A; -> the description of the adapters."""
    source = merged(base, path, **options)
    for layer, (down, up) in matrices(download).items():
        number = factor[layer] if isinstance(factor, dict) else factor
        expected = download.weights[f"{layer}.weight"] + np.float64(number) * (up.astype(np.float64) @ down)
        found = source.read(f"{layer}.weight")
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())
    assert source.adapters is not None
    return source.adapters.describe()


@pytest.mark.parametrize("style", STYLES)
def test_names(base: pathlib.Path, tmp_path: pathlib.Path, download: adapted.Download, style: str) -> None:
    path = tmp_path / "adapters.safetensors"
    safetensors.numpy.save_file(named(matrices(download), STYLES[style]), path)
    assert "assumed, because nothing states alpha" in assert_factor(base, path, download, 1.0)
    assert "--lora-alpha" in assert_factor(base, path, download, 0.5, lora_alpha=2.0)


def test_alpha_in_the_header_of_diffusers(
    base: pathlib.Path, tmp_path: pathlib.Path, download: adapted.Download
) -> None:
    """The settings of diffusers, for a part of a pipeline and for the network alone."""
    path = tmp_path / "pytorch_lora_weights.safetensors"
    settings: dict[str, Any] = {"r": RANK, "lora_alpha": 1, "target_modules": ["to_q", "to_out.0"]}
    first, second = LAYERS
    cases: list[tuple[dict[str, Any], Any]] = [
        (settings, 1 / RANK),
        (settings | {"use_rslora": True}, 1 / math.sqrt(RANK)),
        (settings | {"alpha_pattern": {"to_q": 8}}, {first: 2.0, second: 1 / RANK}),
        (settings | {"r": 2, "rank_pattern": {"to_q": RANK, "to_out.0": RANK}}, 1 / RANK),
        (settings | {"alpha_pattern": {f"^{second}": 2}}, {first: 1 / RANK, second: 2 / RANK}),
    ]
    for values, factor in cases:
        for prefix in ("transformer.", ""):
            header = {f"{prefix}{key}": value for key, value in values.items()}
            tensors = named(matrices(download), prefix + STYLES["no_prefix"])
            metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(header)}
            safetensors.numpy.save_file(tensors, path, metadata=metadata)
            assert "its header" in assert_factor(base, path, download, factor)


def test_alpha_in_the_config_of_peft(base: pathlib.Path, tmp_path: pathlib.Path, download: adapted.Download) -> None:
    """The folder, the file in it, and the older format of weights."""
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 6, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors = named(matrices(download), STYLES["peft"])
    torch.save({name: torch.from_numpy(value) for name, value in tensors.items()}, tmp_path / "adapter_model.bin")
    assert "adapter_config.json" in assert_factor(base, tmp_path, download, 6 / math.sqrt(RANK))
    safetensors.numpy.save_file(tensors, tmp_path / "adapter_model.safetensors")
    for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
        assert_factor(base, path, download, 6 / math.sqrt(RANK))


@pytest.mark.parametrize("style", ["kohya", "kohya_dots", "no_prefix", "diffusers"])
def test_alpha_in_tensors(base: pathlib.Path, tmp_path: pathlib.Path, download: adapted.Download, style: str) -> None:
    path = tmp_path / "adapters.safetensors"
    tensors = named(matrices(download), STYLES[style])
    beginning = STYLES[style].partition(".lora_")[0]
    for number, layer in enumerate(LAYERS):
        name = beginning.format(layer=layer, flat=layer.replace(".", "_"))
        tensors[f"{name}.alpha"] = np.array(number + 1, np.float16) if number else np.array([1.0], np.float32)
    safetensors.numpy.save_file(tensors, path)
    assert ".alpha" in assert_factor(base, path, download, {LAYERS[0]: 1 / RANK, LAYERS[1]: 2 / RANK})


def test_one_file_has_one_alpha(base: pathlib.Path, tmp_path: pathlib.Path, download: adapted.Download) -> None:
    tensors = named(matrices(download), STYLES["peft"])
    safetensors.numpy.save_file(tensors, tmp_path / "adapter_model.safetensors")
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps({"r": RANK, "lora_alpha": 1}))
    assert_factor(base, tmp_path, download, 1 / RANK, lora_alpha=1.0)
    with pytest.raises(errors.UserError, match=r"has alpha 1 by .*adapter_config\.json, but 4 by --lora-alpha"):
        merged(base, tmp_path, lora_alpha=4.0)
    config.write_text(json.dumps({"r": 8, "lora_alpha": 1}))
    with pytest.raises(errors.UserError, match=r"to_q has rank 4, but 8 by .*adapter_config\.json"):
        merged(base, tmp_path)
    config.write_text(json.dumps({"r": RANK, "lora_alpha": 1}))
    header = json.dumps({"r": RANK, "lora_alpha": 2})
    path = tmp_path / "adapter_model.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata={"lora_adapter_metadata": header})
    with pytest.raises(errors.UserError, match=r"has the factor 0\.25 by .*, but 0\.5 by .*its header"):
        merged(base, tmp_path)


def test_everything_without_a_place_is_listed(
    base: pathlib.Path, tmp_path: pathlib.Path, download: adapted.Download
) -> None:
    path = tmp_path / "adapters.safetensors"
    strays = {
        f"{layer}.lora_{x}.weight": np.ones((4, 4), np.float32)
        for layer in ("text_encoder.layers.0.q_proj", "transformer.transformer_blocks.77.attn1.to_q")
        for x in "AB"
    } | {"transformer.some.bias": np.ones(3, np.float32)}
    safetensors.numpy.save_file(named(matrices(download), STYLES["diffusers"]) | strays, path)
    with pytest.raises(errors.UserError, match="5 of 9 tensors are not adapters of") as error:
        merged(base, path)
    assert all(name in str(error.value) for name in strays)
    assert not any(layer in str(error.value) for layer in LAYERS)


@pytest.mark.parametrize(
    "name, method",
    [
        ("transformer_blocks.0.attn1.to_q.lora_magnitude_vector", "DoRA"),
        ("transformer_blocks.0.attn1.to_q.lora_magnitude_vector.default.weight", "DoRA"),
        ("lora_unet_transformer_blocks_0_attn1_to_q.dora_scale", "DoRA"),
        ("lora_unet_patch_embed_proj.lora_mid.weight", "a convolution's adapter"),
        ("transformer_blocks.0.attn1.to_q.hada_w1_a", "LoHa"),
        ("transformer_blocks.0.attn1.to_q.lokr_w1", "LoKr"),
        ("transformer_blocks.0.attn1.to_q.oft_blocks", "OFT"),
        ("transformer_blocks.0.attn1.to_q.ia3_l", "IA3"),
        ("transformer_blocks.0.attn1.to_q.lora_E.default", "AdaLoRA"),
        ("transformer_blocks.0.attn1.to_q.vera_lambda_b", "VeRA"),
        ("diffusion_model.proj_out.diff_b", "a difference of whole tensors"),
    ],
)
def test_other_methods(
    base: pathlib.Path, tmp_path: pathlib.Path, download: adapted.Download, name: str, method: str
) -> None:
    path = tmp_path / "adapters.safetensors"
    tensors = named(matrices(download), STYLES["no_prefix"]) | {name: np.ones(4, np.float32)}
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(errors.UserError, match=f"cannot be merged: {re.escape(f'{method} ({name})')}"):
        merged(base, path)


def test_adapters_of_convolutions(base: pathlib.Path, tmp_path: pathlib.Path, download: adapted.Download) -> None:
    path = tmp_path / "adapters.safetensors"
    rows, *kernel = download.weights["patch_embed.proj.weight"].shape
    pair = {
        "patch_embed.proj.lora_A.weight": np.ones((4, *kernel), np.float32),
        "patch_embed.proj.lora_B.weight": np.ones((rows, 4, 1, 1), np.float32),
    }
    safetensors.numpy.save_file(pair, path)
    with pytest.raises(errors.UserError, match=r"a convolution's adapter \(patch_embed\.proj\.lora_A\.weight, patch_"):
        merged(base, path)
    flat = {name: value.reshape(value.shape[0], -1) for name, value in pair.items()}
    safetensors.numpy.save_file(flat, path)
    with pytest.raises(errors.UserError, match=r"patch_embed\.proj is not a linear layer"):
        merged(base, path)


@pytest.mark.parametrize(
    "values, part",
    [
        ({"use_dora": True}, "use_dora is set, which is DoRA"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA', expected 'LORA'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changes the base"),
        ({"use_later": True}, "use_later is set, which is unknown here"),
        ({"layer_replication": [[0, 2]]}, "replicated layers"),
        ({"trainable_token_indices": [3]}, "trained rows of an embedding"),
        ({"target_parameters": ["w"]}, "adapters of single parameters"),
        ({"lora_alpha": "big"}, "lora_alpha is 'big', expected a positive number"),
        ({"r": 0}, "r is 0, expected a positive number"),
        ({"rank_pattern": [3]}, "rank_pattern is"),
        ({"alpha_pattern": {"(": 3}}, "is not a regular expression"),
    ],
)
def test_settings_that_are_not_plain_lora(
    base: pathlib.Path, tmp_path: pathlib.Path, download: adapted.Download, values: dict[str, Any], part: str
) -> None:
    safetensors.numpy.save_file(named(matrices(download), STYLES["peft"]), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 1} | values))
    with pytest.raises(errors.UserError, match=re.escape(part)):
        merged(base, tmp_path)


def test_incomplete_and_double_adapters(base: pathlib.Path, tmp_path: pathlib.Path, download: adapted.Download) -> None:
    path = tmp_path / "adapters.safetensors"
    tensors = named(matrices(download), STYLES["no_prefix"])
    del tensors[f"{LAYERS[0]}.lora_B.weight"]
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(errors.UserError, match=r"to_q has down without a complete pair"):
        merged(base, path)
    tensors = named(matrices(download), STYLES["default"]) | named(matrices(download), STYLES["own_name"])
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(errors.UserError, match="has several adapters, 'default', 'my_style'"):
        merged(base, path)
    tensors = named(matrices(download), STYLES["no_prefix"]) | named(matrices(download), STYLES["diffusers"])
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(errors.UserError, match="are adapters of one layer"):
        merged(base, path)
    (tmp_path / "run" / "style").mkdir(parents=True)
    (tmp_path / "run" / "style" / "adapter_config.json").write_text("{}")
    with pytest.raises(errors.UserError, match=r"has adapters in its sub-folders 'style'"):
        merged(base, tmp_path / "run")


@pytest.mark.parametrize(
    "name, own, other",
    [
        ("cosmos", adapted.cosmos_original, adapted.cosmos_diffusers),
        ("cosmos", adapted.cosmos_diffusers, adapted.cosmos_original),
    ],
)
def test_adapters_made_for_the_other_layout(
    tmp_path: pathlib.Path,
    name: str,
    own: Callable[[], adapted.Download],
    other: Callable[[], adapted.Download],
) -> None:
    """Adapters for one form of a model change the same parameters of the other form."""
    pairs = {}
    for layer, value in other().module().state_dict().items():
        if layer.endswith(("q_proj.weight", "to_q.weight", "layer1.weight", "ff.net.0.proj.weight")):
            rows, columns = value.shape
            stem = layer.removesuffix(".weight")
            pairs[f"{stem}.lora_A.weight"] = RNG.normal(size=(2, columns)).astype(np.float32)
            pairs[f"{stem}.lora_B.weight"] = RNG.normal(size=(rows, 2)).astype(np.float32)
    path = tmp_path / "adapters.safetensors"
    safetensors.numpy.save_file(pairs, path)
    outputs = []
    for folder, each in (("own", own), ("other", other)):
        source = each().write(tmp_path / folder)
        selection = selecting.Selection(adapters=str(path))
        options = importing.Options(selection=selection)
        outputs.append(importing.import_weights(source, tmp_path / f"{folder}-fused", options)[1]["arrays"])
    assert families.find(name).layouts.keys() == {"original", "diffusers"}
    assert outputs[0] == outputs[1]


def test_split_and_joined_matrices(tmp_path: pathlib.Path) -> None:
    """The refiner's q, k and v are one matrix in the original and three in diffusers; one adapter changes a part."""
    golden = adapted.converted.case("base")
    download = adapted.Download(golden.weights, golden.config["constructor"], "")
    source = download.write(tmp_path / "source")
    joined = "txt_in.individual_token_refiner.blocks.0.self_attn_qkv.weight"
    rows, columns = golden.weights[joined].shape
    rows //= 3
    down, up = RNG.normal(size=(2, columns)).astype(np.float32), RNG.normal(size=(rows, 2)).astype(np.float32)
    layer = "context_embedder.token_refiner.refiner_blocks.0.attn.to_k"
    path = tmp_path / "adapters.safetensors"
    safetensors.numpy.save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, path)
    expected = golden.weights[joined].copy()
    expected[rows : 2 * rows] += up @ down
    np.testing.assert_allclose(merged(source, path).read(joined), expected, rtol=1e-6, atol=1e-6)
    # The last modulation has its halves in the other order there.
    swapped = golden.weights["final_layer.adaLN_modulation.1.weight"]
    up = RNG.normal(size=(len(swapped), 2)).astype(np.float32)
    down = RNG.normal(size=(2, swapped.shape[1])).astype(np.float32)
    safetensors.numpy.save_file({"norm_out.linear.lora_A.weight": down, "norm_out.linear.lora_B.weight": up}, path)
    expected = swapped + np.roll(up, len(up) // 2, axis=0) @ down
    found = merged(source, path)
    np.testing.assert_allclose(found.read("final_layer.adaLN_modulation.1.weight"), expected, rtol=1e-6, atol=1e-6)
    rows_read = found.read("final_layer.adaLN_modulation.1.weight", (slice(3, 9), slice(1, 4)))
    np.testing.assert_allclose(rows_read, expected[3:9, 1:4], rtol=1e-6, atol=1e-6)


def test_a_whole_model_of_peft_is_a_checkpoint(tmp_path: pathlib.Path, download: adapted.Download) -> None:
    """state_dict() of a model that peft wraps: base_layer, adapters, and biases below base_layer."""
    first = LAYERS[0]
    down, up = matrices(download)[first]
    tensors = {}
    for name, value in download.weights.items():
        adapted_name = name.replace(f"{first}.", f"{first}.base_layer.") if name.startswith(f"{first}.") else name
        tensors[f"base_model.model.{adapted_name}"] = value
    tensors[f"base_model.model.{first}.lora_A.default.weight"] = down
    tensors[f"base_model.model.{first}.lora_B.default.weight"] = up
    folder = adapted.Download(tensors, download.config, "").write(tmp_path / "whole")
    importing.import_weights(folder, tmp_path / "imported", importing.Options())
    conversion.main(["export", str(tmp_path / "imported"), "--output", str(tmp_path / "out")])
    with sources.open_source(tmp_path / "out") as written:
        expected = download.weights[f"{first}.weight"] + up @ down
        np.testing.assert_allclose(written.read(f"{first}.weight"), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(written.read(f"{first}.bias"), download.weights[f"{first}.bias"])
        assert set(written.tensors) == set(download.weights)


def test_the_end_message_states_factor_and_origin(
    base: pathlib.Path, tmp_path: pathlib.Path, download: adapted.Download, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "adapters.safetensors"
    header = json.dumps({"transformer.r": RANK, "transformer.lora_alpha": 1})
    tensors = named(matrices(download), STYLES["diffusers"])
    safetensors.numpy.save_file(tensors, path, metadata={"lora_adapter_metadata": header})
    conversion.main(["fuse", str(base), str(path), "--output", str(tmp_path / "stated")])
    printed = capsys.readouterr().out
    assert "merged adapters of rank 4 on 2 layers with the factor 0.25" in printed
    assert "its header" in printed
    assert "assumed" not in printed


def test_rows_of_a_table_cover_a_parameter() -> None:
    """The search for tensors by rows relies on tables whose matrices are transposed."""
    assert engine.TRANSPOSED_SWAPPED.axes == engine.TRANSPOSED.axes
    assert adapter_files.are_adapters(["x.lora_A.weight", "x.lora_B.weight", "y.weight"])
    assert not adapter_files.are_adapters(["x.weight", "y.weight"])
