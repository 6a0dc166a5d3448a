"""Adapters (LoRA) of a run alone: peft loads and merges them to the weights that the merged export has."""

import dataclasses
import json
import pathlib

import adapted
import numpy as np
import peft
import pytest
import safetensors
import safetensors.numpy

from conversion import __main__ as conversion
from conversion import adapter_exports, exporting, folders, gemma3, importing, sources
from jworld import systems
from jworld.models.layers import lora
from jworld.systems import runs
from jworld.utils import config as run_config
from jworld.utils import errors

#: System -> the layers to adapt, in our names. A joined q, k and v, and swapped halves, are among them.
TARGETS = {
    "matrix": ("blocks/attention/(query|out)",),
    "matrix_control": ("control_blocks/attention/key", "blocks/mlp/up"),
    "cosmos_original": ("blocks/(self|cross)_attention/(query|out)", "blocks/mlp/up"),
    "cosmos_diffusers": ("blocks/self_attention/value", "final_modulation/linear"),
    "worldplay": ("blocks/image/(query|mlp/down)", "text/refiner/blocks/0/qkv", "blocks/camera_out"),
    "hunyuan_diffusers": ("blocks/text/key", "text/refiner/blocks/0/qkv", "final_modulation/linear"),
    "gemma": ("language/layers/.*attention/query", "vision/layers/.*mlp/up"),
}
RANK, ALPHA = 3, 2.0


def make_run(folder: pathlib.Path, name: str, targets: tuple[str, ...]) -> pathlib.Path:
    """Write a run with random adapters on the imported weights of a small download."""
    return adapt(adapted.DOWNLOADS[name]().write(folder / "source"), folder, targets)


def adapt(source: pathlib.Path, folder: pathlib.Path, targets: tuple[str, ...]) -> pathlib.Path:
    """Write a run with random adapters on the imported weights of `source`."""
    importing.import_weights(source, folder / "base", importing.Options())
    config = run_config.load(folder / "base")
    with config.unlocked():
        config.model.lora = {"targets": targets, "rank": RANK, "alpha": ALPHA}
        config.optimizer.trainable = lora.TRAINABLE
    run = folder / "run"
    run.mkdir()
    run_config.save(config.lock(), run)
    shapes = importing.abstract_params(systems.create(config))
    opened = folders.open_weights(folder / "base")
    rng = np.random.default_rng(5)
    arrays = {
        path: (0.2 * rng.normal(size=leaf.shape)).astype(np.float32)
        if path not in opened.arrays
        else opened.read(path).astype(np.float32)
        for path, leaf in shapes.items()
    }
    safetensors.numpy.save_file(arrays, run / runs.WEIGHTS)
    return run


def contents(path: pathlib.Path) -> dict[str, np.ndarray]:
    with sources.open_source(path) as opened:
        return {name: opened.read(name) for name in opened.tensors}


@pytest.mark.parametrize("name", TARGETS)
def test_every_system(tmp_path: pathlib.Path, name: str) -> None:
    download = adapted.DOWNLOADS[name]()
    run = make_run(tmp_path, name, TARGETS[name])
    layout = ["--layout", "diffusers"] if name.endswith("diffusers") else []
    if name == "gemma":
        # Adapters have the names of modules, which are not those of the published files.
        layout = ["--layout", "transformers5"]
        renamed = {gemma3.restyle(each, "transformers5"): value for each, value in download.weights.items()}
        download = dataclasses.replace(download, weights=renamed)
    conversion.main(["export", str(run), *layout, "--output", str(tmp_path / "merged")])
    conversion.main(["export", str(run), *layout, "--adapters", "--output", str(tmp_path / "adapters")])
    assert sorted(path.name for path in (tmp_path / "adapters").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    expected = {each.removeprefix(download.prefix): x for each, x in contents(tmp_path / "merged").items()}
    model = peft.PeftModel.from_pretrained(download.module(), tmp_path / "adapters")
    # No layer has an adapter that the file does not fill.
    loaded = {key.replace(".default", "") for key, _ in model.named_parameters() if "lora_" in key}
    assert loaded == set(safetensors.numpy.load_file(tmp_path / "adapters" / "adapter_model.safetensors"))
    found = {key: value.detach().numpy() for key, value in model.merge_and_unload().state_dict().items()}
    assert found.keys() == expected.keys()
    before = {key.removeprefix(download.prefix): value for key, value in download.weights.items()}
    changed = [key for key, value in expected.items() if np.abs(value - before[key]).max() > 1e-3]
    assert len(changed) == len(loaded) // 2
    for key, value in expected.items():
        assert np.abs(found[key] - value).max() <= 1e-6 * np.abs(value).max(), key

    # The same adapters in one file, whose header and matrices state the same factor; and both are read here again.
    file = tmp_path / "one" / "lora.safetensors"
    conversion.main(["export", str(run), *layout, "--adapters", "--output", str(file)])
    with safetensors.safe_open(file, framework="numpy") as opened:
        header = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert {key.rpartition(".")[2]: value for key, value in header.items()}["lora_alpha"] == RANK
    for number, adapters in enumerate((tmp_path / "adapters", file)):
        fused = tmp_path / f"fused{number}"
        conversion.main(["fuse", str(tmp_path / "source"), str(adapters), "--output", str(fused)])
        conversion.main(["export", str(fused), *layout, "--output", str(fused) + "-out"])
        again = {each.removeprefix(download.prefix): x for each, x in contents(pathlib.Path(f"{fused}-out")).items()}
        for key, value in expected.items():
            assert np.abs(again[key] - value).max() <= 1e-6 * np.abs(value).max(), key


def test_layers_that_are_not_linear_there(tmp_path: pathlib.Path) -> None:
    run = make_run(tmp_path, "matrix", ("patch_in", "blocks/attention/query"))
    message = r"adapters of patch_in \(patch_embed\.proj\.weight\) have no linear layer in The Matrix"
    with pytest.raises(errors.UserError, match=message):
        adapter_exports.export_adapters(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_diffusers_loads_the_file(tmp_path: pathlib.Path) -> None:
    """The class of diffusers, with the adapters that it reads itself, computes what the merged weights compute."""
    diffusers = pytest.importorskip("diffusers")
    torch = pytest.importorskip("torch")
    run = make_run(tmp_path, "matrix", TARGETS["matrix"])
    conversion.main(["export", str(run), "--output", str(tmp_path / "merged")])
    conversion.main(["export", str(tmp_path / "base"), "--output", str(tmp_path / "plain")])
    file = tmp_path / "one" / exporting.ADAPTERS_NAME
    conversion.main(["export", str(run), "--adapters", "--output", str(file)])
    models = {
        name: diffusers.CogVideoXTransformer3DModel.from_pretrained(tmp_path / name).eval()
        for name in ("merged", "plain")
    }
    generator = torch.Generator().manual_seed(0)
    cfg = models["plain"].config
    text = torch.randn(1, cfg.max_text_seq_length, cfg.text_embed_dim, generator=generator)
    latents = torch.randn(1, 2, cfg.in_channels, 4, 8, generator=generator)

    def output(name: str) -> np.ndarray:
        with torch.inference_mode():
            return models[name](latents, text, torch.tensor([500]), return_dict=False)[0].numpy()

    expected, before = output("merged"), output("plain")
    models["plain"].load_lora_adapter(str(file.parent), weight_name=file.name, prefix="transformer")
    found = output("plain")
    assert np.abs(before - expected).max() > 1e-2 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
