"""Samples and evaluations on records of the user's own data, which hold less than the recorded demo data."""

import pathlib
from typing import Any

import commands
import jax
import ml_collections
import numpy as np
import own_records
import pytest
import rich.console
import tiny_run
import tiny_systems
import tiny_videos

from jworld import systems
from jworld.cameras import driving
from jworld.data import records
from jworld.data.records import text_store
from jworld.encoders import model_encoders
from jworld.encoders.choices import EncoderOverrides
from jworld.evaluation import held_out, results
from jworld.parallel import mesh as mesh_lib
from jworld.systems import runs
from jworld.systems.matrix import evaluation
from jworld.utils import config as run_config

RECIPES = pathlib.Path(__file__).parents[2] / "configs"
TOKENS = ["N"] * 4 + ["D"] * 8 + ["DL"] * 8 + ["BR"] * 4
OPTIONS = results.Options(windows=2, chunks=1)
MATRIX, COSMOS = {"text_tokens": 5}, {"max_size": (16, 16, 16)}


def make_set(raw: pathlib.Path, *, control: bool) -> pathlib.Path:
    """Encode three videos of 24 frames, with or without driving tokens, into clips of 9 frames, some held out."""
    entries = []
    for name in "abc":
        tiny_videos.write(raw / f"{name}.mp4", tiny_videos.numbered(24), fps=10)
        entry = {"path": f"{name}.mp4", "caption": f"road {name}"}
        entries.append(entry | ({"control_signal_seq": ",".join(TOKENS)} if control else {}))
    return own_records.encode(raw, entries, val_share=0.5)


def recipe(name: str, directory: pathlib.Path, **model: Any) -> ml_collections.ConfigDict:
    """Load a tiny recipe and make it fit the records of `make_set`."""
    config = run_config.load_recipe(str(RECIPES / name))
    with config.unlocked():
        config.global_batch = 2
        config.model.update({"channels": 16, "width": 48, "num_heads": 2, "num_layers": 2, "text_dim": 6, **model})
        config.data.update({"records": str(directory), "threads": 1})
        config.data.recording.source = ""
        config.data.clip.update({"latent_size": (2, 4), "window_frames": 3})
        config.sample.rollout.num_steps = 4
    return config


def check_sample_and_evaluation(config: ml_collections.ConfigDict) -> results.Report:
    """Sample and measure a model with random weights on the held-out clips of its config."""
    system = systems.create(config)
    model = tiny_systems.make_model(system)
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    encoders = system.data.encoders(pathlib.Path(config.data.records), given=EncoderOverrides(), mesh=mesh, stored=True)
    sample = system.make_sample(model, encoders, config)
    assert isinstance(sample, results.Comparison)
    assert sample.prediction.shape == sample.truth.shape
    report = system.evaluate(model, encoders, config, OPTIONS, rich.console.Console(quiet=True))
    assert np.isfinite(report.curves[held_out.MODEL]).all()
    return report


def test_clips_without_control(tmp_path: pathlib.Path) -> None:
    directory = make_set(tmp_path, control=False)
    report = check_sample_and_evaluation(recipe("matrix_lora.py:base", directory, **MATRIX))
    assert held_out.SWAPPED not in report.curves


def test_clips_with_recorded_tokens(tmp_path: pathlib.Path) -> None:
    directory = make_set(tmp_path, control=True)
    config = recipe("matrix_control.py", directory, control_dim=8, control_layers=(1, 2), **MATRIX)
    config.data.clip.controls = "tokens"
    assert held_out.SWAPPED in check_sample_and_evaluation(config).curves
    source = records.RecordSource(directory, "val")
    system = systems.create(config)
    mesh = mesh_lib.make_mesh(devices=jax.devices()[:1])
    encoders = system.data.encoders(directory, given=EncoderOverrides(), mesh=mesh, stored=True)
    clip = held_out.from_record(source, 0, encoders)
    expected = [driving.TOKENS[number] for number in source[0]["control"]]
    assert evaluation.recorded_tokens(clip) == tuple(expected)


def test_streams_with_recorded_tokens(tmp_path: pathlib.Path) -> None:
    directory = make_set(tmp_path, control=True)
    config = recipe("matrix_swin_dpm.py", directory, control_dim=8, control_layers=(1, 2), **MATRIX)
    with config.unlocked():
        config.data.clip.update({"controls": "tokens", "start": "first"})
        config.loss.groups = config.sample.rollout.groups = 2
        config.sample.rollout.window_frames = 1
    assert held_out.SWAPPED in check_sample_and_evaluation(config).curves


def test_continuations_without_actions(tmp_path: pathlib.Path) -> None:
    directory = make_set(tmp_path, control=False)
    report = check_sample_and_evaluation(recipe("cosmos_video2world.py", directory, **COSMOS))
    assert held_out.SWAPPED not in report.curves


def test_imported_sets_need_no_text_or_image_encoder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Manifests of imported sets have hashes for captions and encoders without a source."""
    folder = tiny_run.make_run(tmp_path_factory.mktemp("imported"))
    config = run_config.load(folder).copy_and_resolve_references()
    config.data.recording.source = ""
    directory = pathlib.Path(config.data.records)
    manifest = records.read_manifest(directory)
    keys = [f"{row:032x}" for row in range(len(manifest["prompts"]))]
    manifest["prompts"] = keys
    for role in ("text_encoder", "vision_encoder"):
        manifest[role] = {key: value for key, value in manifest[role].items() if key not in ("kind", "source")}
        manifest[role]["family"] = "unpublished"
    records.write_manifest(directory, manifest)
    model_encoders.copy(directory, folder / runs.ENCODERS)

    run = runs.load(folder, config=config, stored=True)
    assert (run.encoders.text, run.encoders.images) == (None, None)
    store = text_store.TextStore(directory, manifest)
    for row, key in enumerate(keys):
        np.testing.assert_array_equal(run.encoders.prompt(key)["text_states"], store.prompt(row)["text_states"])
    sample = run.system.make_sample(run.model, run.encoders, run.config)
    assert sample.prediction.shape[0] == 29
    report = run.system.evaluate(run.model, run.encoders, config, OPTIONS, rich.console.Console(quiet=True))
    assert all(row["first_latent"] == 0 for row in report.numbers["per_window"])


@pytest.mark.slow
@pytest.mark.e2e
def test_a_set_without_held_out_clips_trains_to_the_end(tmp_path: pathlib.Path) -> None:
    raw = tmp_path / "raw"
    for name in "ab":
        tiny_videos.write(raw / f"{name}.mp4", tiny_videos.numbered(24), fps=10)
    entries = [{"path": f"{name}.mp4", "caption": "a road"} for name in "ab"]
    own_records.encode(raw, entries, val_share=0.0)
    arguments = [
        *own_records.COSMOS,
        f"--workdir={tmp_path / 'run'}",
        f"--config.data.records={raw / 'records'}",
        "--config.steps=1",
    ]
    for _ in range(2):
        result = commands.run("jworld.train", *arguments, XLA_FLAGS="--xla_force_host_platform_device_count=1")
        assert result.returncode == 0, result.stdout + result.stderr
        assert "no continuation: " in result.stdout
        assert "split 'val' has no records" in result.stdout
        assert "next: " not in result.stdout
