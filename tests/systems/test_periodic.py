"""Samples and held-out measurements during training, for every system, through the command."""

import pathlib

import cases
import commands
import numpy as np
import pytest
import tensorstore
from tensorboardX.proto import event_pb2

from jworld import systems
from jworld.training import metrics, writers

ENVIRONMENT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"}
CASES = cases.load()
PROMPT = "--config.sample.prompts=('Which way?',)"


def arguments(name: str, folder: pathlib.Path, *extra: str, workdir: str = "run", steps: int = 2) -> list[str]:
    """Return the arguments of a run of two steps that does not sample at its end."""
    return [
        f"--config=configs/{CASES[name].recipe}",
        f"--workdir={folder / workdir}",
        f"--config.data.records={folder / 'records'}",
        f"--config.data.recording.directory={folder / 'episodes'}",
        f"--config.steps={steps}",
        "--config.log.interval=1",
        "--config.optimizer.warmup_steps=0",
        *CASES[name].settings,
        *extra,
    ]


def parameters(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Return all arrays of a checkpoint's parameters, as they are stored."""
    folder = workdir / "checkpoints" / str(step) / "params"
    found = {}
    spec = {"driver": "ocdbt", "base": f"file://{folder.absolute()}"}
    for key in tensorstore.KvStore.open(spec).result().list().result():
        name = key.decode()
        if name.endswith("/.zarray"):
            path = name.removesuffix("/.zarray")
            array = tensorstore.open({"driver": "zarr", "kvstore": spec | {"path": path}}).result()
            found[path] = array.read().result()
    return found


def events(workdir: pathlib.Path) -> list[event_pb2.Event]:
    """Return the events of a run for TensorBoard."""
    found = []
    for path in sorted((workdir / writers.BOARD).iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            found.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + length]))
            at += length + 16
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", list(systems.REGISTRY))
def test_samples_and_measurements_leave_the_run_as_it_is(name: str, tmp_path: pathlib.Path) -> None:
    during = ["--config.sample.interval=1", "--config.evaluation.interval=1"]
    during += [PROMPT] if name != "autoencoder" else []
    with_both = commands.run("jworld.train", *arguments(name, tmp_path, *during), **ENVIRONMENT)
    assert with_both.returncode == 0, with_both.stdout + with_both.stderr
    assert "no samples after" not in with_both.stdout, with_both.stdout
    assert "no evaluation after" not in with_both.stdout, with_both.stdout
    run, plain_run = tmp_path / "run", tmp_path / "plain"

    plain = commands.run("jworld.train", *arguments(name, tmp_path, workdir="plain"), **ENVIRONMENT)
    assert plain.returncode == 0, plain.stdout + plain.stderr
    expected = parameters(plain_run, 2)
    found = parameters(run, 2)
    assert found.keys() == expected.keys()
    assert found
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)

    rows = metrics.read(run)
    held_out = {row["step"]: row for row in rows if "val_loss" in row}
    assert sorted(held_out) == [1, 2]
    assert held_out[1]["val_loss"] != held_out[2]["val_loss"]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses == [row["loss"] for row in metrics.read(plain_run)]
    kind = systems.REGISTRY[name]
    if name in systems.VIDEO:
        for level in ("0.125", "0.375", "0.625", "0.875"):
            assert held_out[1][f"val_loss_t{level}"] > 0, kind
            assert 0 < held_out[1][f"val_psnr_t{level}"] < 60
        assert held_out[1]["val_psnr_t0.125"] > held_out[1]["val_psnr_t0.875"]
    if name == "autoencoder":
        assert 0 < held_out[1]["val_psnr"] < 60
    if name == "theworld":
        assert 0 <= held_out[1]["val_accuracy"] <= 1

    suffix = ".json" if name == "theworld" else ".mp4"
    for step in ("1", "2"):
        made = {path.stem for path in (run / "samples" / step).iterdir() if path.suffix == suffix}
        assert made - {"prompt-1"}
        assert ("prompt-1" in made) == (name != "autoencoder")
    shown = [(event.step, value) for event in events(run) for value in event.summary.value]
    pictures = {(step, value.tag) for step, value in shown if value.tag.startswith("samples/")}
    assert len(pictures) == (2 if name == "autoencoder" else 4)
    animated = [value.image.encoded_image_string for _, value in shown if value.image.encoded_image_string]
    assert all(image.startswith(b"GIF89a") for image in animated)
    assert bool(animated) == (name != "theworld")
