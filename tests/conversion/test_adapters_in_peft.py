"""Adapters (LoRA) made by peft, in all its forms, merged as peft merges them."""

import pathlib
from collections.abc import Mapping
from typing import Any

import adapted
import numpy as np
import peft
import pytest
import safetensors.numpy

from conversion import __main__ as conversion
from conversion import inspecting, sources

#: Settings of adapters: rank and alpha, the patterns, and the rule for the factor.
SETTINGS: dict[str, dict[str, Any]] = {
    "alpha": {"r": 4, "lora_alpha": 1},
    "rslora": {"r": 4, "lora_alpha": 3, "use_rslora": True},
    "patterns": {"r": 2, "lora_alpha": 6},
    "bias": {"r": 3, "lora_alpha": 2, "lora_bias": True},
}
#: Networks whose adapted layers have a bias.
WITH_BIAS = ("matrix", "matrix_control", "worldplay", "hunyuan_diffusers")


def contents(path: pathlib.Path) -> dict[str, np.ndarray]:
    with sources.open_source(path) as opened:
        return {name: opened.read(name) for name in opened.tensors}


def assert_close(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], prefix: str = "") -> None:
    """Compare all tensors at 1e-6 of the largest element."""
    assert {name.removeprefix(prefix) for name in found} == set(expected)
    for name, value in expected.items():
        error = np.abs(found[prefix + name].astype(np.float64) - value).max() / np.abs(value).max()
        assert error < 1e-6, (name, error)


def fused(source: pathlib.Path, adapters: pathlib.Path, folder: pathlib.Path, *options: str) -> dict[str, np.ndarray]:
    """Return the tensors of the exported result of `fuse`."""
    conversion.main(["fuse", str(source), str(adapters), "--output", str(folder / "fused"), *options])
    conversion.main(["verify", str(folder / "fused"), str(source)])
    conversion.main(["export", str(folder / "fused"), "--output", str(folder / "exported")])
    return contents(folder / "exported")


@pytest.mark.parametrize(
    "name, settings",
    [(name, each) for each in SETTINGS for name in adapted.DOWNLOADS if each != "bias" or name in WITH_BIAS],
)
def test_a_folder_of_peft(tmp_path: pathlib.Path, name: str, settings: str) -> None:
    download = adapted.DOWNLOADS[name]()
    values = dict(SETTINGS[settings])
    layers = [layer for layer, _ in download.module().named_modules()]
    if settings == "patterns":
        chosen = [layer for layer in layers if peft.utils.other.match_target_against_key(download.targets, layer)]
        last = chosen[-1].rsplit(".", 1)[-1]
        first, second, *_ = [layer for layer in chosen if not layer.endswith(last)]
        values |= {"rank_pattern": {last: 5, first: 1}, "alpha_pattern": {rf"^{second}": 3, f".*{last}": 10}}
    config = peft.LoraConfig(target_modules=download.targets, **values)
    source = download.write(tmp_path / "source")
    folder = adapted.adapters(download.module(), tmp_path / "adapters", config)
    expected = adapted.merged(download.module(), folder)
    before = {layer.removeprefix(download.prefix): value for layer, value in download.weights.items()}
    assert max(np.abs(expected[layer] - before[layer]).max() for layer in expected) > 1e-2
    assert_close(fused(source, folder, tmp_path), expected, download.prefix)


def test_whole_tensors_of_peft(tmp_path: pathlib.Path) -> None:
    """modules_to_save: peft stores whole layers next to the adapters, which replace those of the base."""
    download = adapted.matrix()
    config = peft.LoraConfig(target_modules=download.targets, r=4, lora_alpha=2, modules_to_save=["proj_out"])
    folder = adapted.adapters(download.module(), tmp_path / "adapters", config)
    assert "base_model.model.proj_out.weight" in safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    expected = adapted.merged(download.module(), folder)
    assert np.abs(expected["proj_out.weight"] - download.weights["proj_out.weight"]).max() > 0.1
    assert_close(fused(download.write(tmp_path / "source"), folder, tmp_path), expected)


def test_an_adapted_embedding(tmp_path: pathlib.Path) -> None:
    download = adapted.gemma()
    config = peft.LoraConfig(target_modules=r".*(embed_tokens|self_attn\.q_proj)", r=4, lora_alpha=2)
    folder = adapted.adapters(download.module(), tmp_path / "adapters", config)
    names = safetensors.numpy.load_file(folder / "adapter_model.safetensors").keys()
    assert any(name.endswith("embed_tokens.lora_embedding_A") for name in names)
    expected = adapted.merged(download.module(), folder)
    assert_close(fused(download.write(tmp_path / "source"), folder, tmp_path), expected)


@pytest.mark.parametrize("form", ["folder", "file"])
def test_adapters_alone(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    """They are described, and an import names the command that merges them."""
    download = adapted.matrix()
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=download.targets)
    path = adapted.adapters(download.module(), tmp_path / "lora", config)
    if form == "file":
        path = path / "adapter_model.safetensors"
    rows = inspecting.inspect(path)
    assert rows["kind"] == "adapters (LoRA), merged by fuse"
    assert rows["adapters"].startswith("rank 2 on 8 layers with the factor 3 (")
    with pytest.raises(SystemExit):
        conversion.main(["import", str(path), "--output", str(tmp_path / "out")])
    message = capsys.readouterr().err
    assert "has adapters (LoRA) alone, expected weights" in message
    assert f"`python -m conversion fuse BASE {path}" in message
