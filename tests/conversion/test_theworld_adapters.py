"""Adapters on Gemma-3 in a model with a world: its projection, which the recipe trains too, goes with them."""

import json
import pathlib

import gemma_folders
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import test_adapter_exports
import torch

from conversion import __main__ as conversion
from conversion import importing, sources
from jworld import systems
from jworld.models.layers import lora
from jworld.systems import runs
from jworld.utils import config as run_config

TARGETS = ("language/layers/attention/(query|key|value|out)", "language/layers/mlp/(gate|up|down)")


def contents(path: pathlib.Path) -> dict[str, np.ndarray]:
    with sources.open_source(path) as opened:
        return {name: opened.read(name) for name in opened.tensors}


def test_adapters_that_are_kept_compute_what_peft_computes(tmp_path: pathlib.Path) -> None:
    """The network with its own adapters, the class of transformers with peft's, and merged weights agree."""
    source = gemma_folders.write(tmp_path / "source")
    run = test_adapter_exports.adapt(source, tmp_path, (*TARGETS, "vision/layers/(query|mlp/down)"))
    conversion.main(["export", str(run), "--adapters", "--output", str(tmp_path / "adapters")])
    theirs = peft.PeftModel.from_pretrained(gemma_folders.load(source), tmp_path / "adapters").eval()
    given = gemma_folders.inputs(image=False)
    with torch.inference_mode():
        expected = theirs(**given).logits.numpy()
    config = run_config.load(run)
    with config.unlocked():
        config.model.dtype = config.model.frozen_dtype = "float32"
    model, _ = runs.load_model(run, config=config)
    assert any(layer.lora is not None for layer in lora.dense_layers(model).values())
    found = np.asarray(model(jnp.asarray(given["input_ids"].numpy())))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.fixture
def world_run(tmp_path: pathlib.Path) -> pathlib.Path:
    """Write a run of the recipe `lora` in small, with random weights of all parts."""
    config = run_config.load_recipe("configs/theworld.py:lora")
    base = gemma_folders.write(tmp_path / "gemma")
    conversion.main(["import", str(base), "--output", str(tmp_path / "base")])
    small = run_config.load(tmp_path / "base").model
    with config.unlocked():
        config.model.update({key: small[key] for key in small if key != "world"})
        config.model.lora.rank = 3
        config.model.world.update({"start_token": 9, "end_token": 10, "image_size": 64})
        config.model.world.autoencoder_width = 8
        config.data.clip.update({"image_size": config.model.image_size, "world_size": 64})
    run = tmp_path / "run"
    run.mkdir()
    run_config.save(config.lock(), run)
    rng = np.random.default_rng(0)
    shapes = importing.abstract_params(systems.create(config))
    arrays = {path: (0.1 * rng.normal(size=leaf.shape)).astype(np.float32) for path, leaf in shapes.items()}
    safetensors.numpy.save_file(arrays, run / runs.WEIGHTS)
    return run


def test_the_projection_goes_with_the_adapters(world_run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The base with what `--adapters` wrote is the merged export, bit for bit where nothing was merged."""
    conversion.main(["export", str(world_run), "--adapters", "--output", str(tmp_path / "adapters")])
    settings = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert settings["modules_to_save"] == ["world_projector.projection.0", "world_projector.projection.2"]
    conversion.main(["export", str(world_run), "--output", str(tmp_path / "merged")])
    merged = contents(tmp_path / "merged")
    # A base with another projection, and without the adapters.
    plain = tmp_path / "plain"
    plain.mkdir()
    config = run_config.load(world_run)
    arrays = safetensors.numpy.load_file(world_run / runs.WEIGHTS)
    with config.unlocked():
        del config.model["lora"]
    run_config.save(config, plain)
    arrays = {path: value for path, value in arrays.items() if "/lora/" not in path}
    arrays |= {path: 0 * value for path, value in arrays.items() if path.startswith("world/")}
    safetensors.numpy.save_file(arrays, plain / runs.WEIGHTS)
    conversion.main(["export", str(plain), "--output", str(tmp_path / "base_files")])
    conversion.main(
        ["fuse", str(tmp_path / "base_files"), str(tmp_path / "adapters"), "--output", str(tmp_path / "fused")]
    )
    conversion.main(["export", str(tmp_path / "fused"), "--output", str(tmp_path / "again")])
    again = contents(tmp_path / "again")
    assert again.keys() == merged.keys()
    changed = [name for name, value in contents(tmp_path / "base_files").items() if not (value == merged[name]).all()]
    assert len(changed) == len([name for name in merged if "language_model" in name and "_proj." in name]) + 4
    for name, value in merged.items():
        assert np.abs(again[name] - value).max() <= 1e-6 * np.abs(value).max(), name


def test_gemma_alone_of_a_model_with_a_world(
    world_run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Transformers loads it; what it has no place for is said."""
    conversion.main(["export", str(world_run), "--layout", "hub", "--output", str(tmp_path / "gemma_alone")])
    assert "have no place for them: autoencoder, world" in capsys.readouterr().out
    gemma_folders.load(tmp_path / "gemma_alone")
    conversion.main(["verify", str(world_run), str(tmp_path / "gemma_alone")])
    with pytest.raises(SystemExit):
        conversion.main(["export", str(world_run), "--layout", "text", "--output", str(tmp_path / "text")])
    assert "--layout text has no vision tower, which this model has: give --layout hub" in capsys.readouterr().err
