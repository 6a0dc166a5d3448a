"""Samples and held-out measurements during training, for every system, through the command."""

import pathlib

import cases
import commands
import numpy as np
import pytest
import tensorstore
import xla_flags
from systems import test_fifth_system
from tensorboardX.proto import event_pb2

from jworld import systems, train
from jworld.training import metrics, writers

ENVIRONMENT = {"XLA_FLAGS": xla_flags.fast_compilation(1)}
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


@pytest.fixture
def fading(monkeypatch: pytest.MonkeyPatch) -> type[test_fifth_system.Fading]:
    """Register a system of one layer."""
    monkeypatch.setitem(systems.REGISTRY, "fading", test_fifth_system.Fading)
    return test_fifth_system.Fading


def train_fading(workdir: pathlib.Path, *extra: str) -> dict[str, np.ndarray]:
    """Train for six steps; return the parameters at the end."""
    train.main([f"--config={test_fifth_system.__file__}", f"--workdir={workdir}", "--config.steps=6", *extra])
    return parameters(workdir, 6)


BOTH = ("--config.sample.interval=2", "--config.evaluation.interval=1", "--config.evaluation.batches=2")


def test_failures_in_between_never_end_a_run(
    fading: type[test_fifth_system.Fading],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = train_fading(tmp_path / "plain")
    found = train_fading(tmp_path / "both", *BOTH)
    capsys.readouterr()

    def fail(*_: object) -> None:
        raise MemoryError("out of memory\nwhile sampling")

    batches = test_fifth_system.Data.batches
    failed = []

    def only_train(data: test_fifth_system.Data, split: str) -> object:
        if split == "val":
            failed.append(split)
            raise OSError(f"disk {len(failed)} is gone")
        return batches(data, split)

    monkeypatch.setattr(test_fifth_system.Data, "batches", only_train)
    monkeypatch.setattr(fading, "make_sample", fail)
    with pytest.raises(MemoryError):  # at the end, where nothing can be lost
        train_fading(tmp_path / "failing", *BOTH)
    lines = capsys.readouterr().out.splitlines()
    problems = [line for line in lines if line.startswith("no ")]
    assert problems.count("no samples after step 2: out of memory while sampling; the training continues") == 1
    assert sum(line.startswith("no samples") for line in problems) == 1
    assert sum(line.startswith("no evaluation") for line in problems) == 6
    failing = parameters(tmp_path / "failing", 6)
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)
        np.testing.assert_array_equal(failing[path], value)


def test_measurements_are_of_the_same_batches(fading: object, tmp_path: pathlib.Path) -> None:
    train_fading(tmp_path / "run", *BOTH, "--config.optimizer.learning_rate=1e-30")
    losses = [row["val_loss"] for row in metrics.read(tmp_path / "run") if "val_loss" in row]
    assert len(losses) == 6
    assert len(set(losses)) == 1
    assert sorted(path.name for path in (tmp_path / "run" / "samples").iterdir()) == [
        "2",
        "4",
        "6",
        "fading.mp4",
        "fading.png",
    ]


def test_an_interrupted_run_ends_like_an_uninterrupted_one(fading: object, tmp_path: pathlib.Path) -> None:
    expected = train_fading(tmp_path / "straight")
    until = ("--config.steps=4", *BOTH)
    train.main([f"--config={test_fifth_system.__file__}", f"--workdir={tmp_path / 'run'}", *until])
    found = train_fading(tmp_path / "run", "--config.evaluation.interval=3")
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value)


def test_a_prompt_of_a_system_that_reads_none(
    fading: object, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_fading(tmp_path / "run", "--config.sample.prompts=('x',)")
    assert "the system 'fading' does not read text: leave the key out" in capsys.readouterr().out
    assert (tmp_path / "run" / "samples" / "fading.mp4").is_file()
