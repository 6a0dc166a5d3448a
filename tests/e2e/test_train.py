"""`python -m jworld.train` from recording to checkpoint, interrupted in every way, on one device and on eight."""

import json
import pathlib
import random
import shutil
import signal
import subprocess
import time

import commands
import jax
import numpy as np
import pytest
from flax import nnx

from jworld.data import records
from jworld.models.autoencoders import linear
from jworld.systems import runs, workdirs
from jworld.training import goodput, metrics
from jworld.utils import errors

pytestmark = pytest.mark.e2e

ONE_DEVICE = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with a data set and an uninterrupted run in `run`."""
    folder = tmp_path_factory.mktemp("train")
    result = commands.run("jworld.train", *commands.train_arguments(folder), **ONE_DEVICE)
    assert result.returncode == 0, result.stdout + result.stderr
    for part in ("step 12/12", "examples/s", "data wait", "ETA", "grad norm", "next: python -m jworld.evaluate"):
        assert part in result.stdout
    return folder


def finish(folder: pathlib.Path, workdir: str, *extra: str) -> str:
    result = commands.run("jworld.train", *commands.train_arguments(folder, *extra, workdir=workdir), **ONE_DEVICE)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_run_leaves_what_the_other_commands_need(folder: pathlib.Path) -> None:
    run = folder / "run"
    rows = metrics.read(run)
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert list((run / "tensorboard").iterdir())
    assert (run / "samples" / "rollout.mp4").stat().st_size > 0
    assert (run / "samples" / "rollout.png").stat().st_size > 0
    assert runs.load(run).step == 12


@pytest.mark.slow
def test_kills_change_nothing(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch that is killed at a random moment, one that is asked to stop, one that ends; more in test_chaos."""
    monkeypatch.setenv("XLA_FLAGS", ONE_DEVICE["XLA_FLAGS"])
    process = commands.start("jworld.train", *commands.train_arguments(folder, workdir="killed"))
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step 4/"):
            time.sleep(random.random() * 0.3)
            process.kill()
    assert process.wait() == -signal.SIGKILL
    process = commands.start("jworld.train", *commands.train_arguments(folder, workdir="killed"))
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("step "):
            process.send_signal(signal.SIGTERM)
    assert process.wait() == errors.RESTART, "".join(lines)
    assert any("stopped after step" in line for line in lines)
    assert "resuming after step" in finish(folder, "killed")
    assert commands.checksums(folder / "killed", 12) == commands.checksums(folder / "run", 12)
    losses = [[row["loss"] for row in metrics.read(folder / name)] for name in ("killed", "run")]
    assert losses[0] == losses[1]
    assert json.loads((folder / "killed" / goodput.FILE).read_text())["launches"] == 3


def copy_until(folder: pathlib.Path, name: str, step: int) -> pathlib.Path:
    """The uninterrupted run as it was after a step."""
    shutil.copytree(folder / "run", folder / name)
    for path in (folder / name / runs.CHECKPOINTS).iterdir():
        if path.name.isdigit() and int(path.name) > step:
            shutil.rmtree(path)
    return folder / name / runs.CHECKPOINTS


@pytest.mark.slow
def test_resume_on_another_mesh(folder: pathlib.Path) -> None:
    copy_until(folder, "moved", 6)
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=2", "--config.mesh.sequence=2")
    arguments = commands.train_arguments(folder, *mesh, workdir="moved")
    result = commands.run("jworld.train", *arguments, XLA_FLAGS="--xla_force_host_platform_device_count=8")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "resuming after step 6" in result.stdout
    expected, found = (nnx.state(runs.load(folder / name).model) for name in ("run", "moved"))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_and_the_previous_one_taken(folder: pathlib.Path) -> None:
    blocks = (copy_until(folder, "damaged", 6) / "6" / "params" / "d").glob("*")
    largest = max(blocks, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    told = finish(folder, "damaged")
    assert "set aside: checkpoint step 6 in " in told
    assert "resuming after step 3" in told
    assert (folder / "damaged" / runs.CHECKPOINTS / "damaged-6").is_dir()
    assert commands.checksums(folder / "damaged", 12) == commands.checksums(folder / "run", 12)


MISTAKES = [
    (("--config.model.dpeth=3",), ("config.model.dpeth", "no such key")),
    (("--config.model.width=wide",), ("config.model.width", "wide")),
    (("--config.log.interval=0",), ("config.log.interval", "got '0'")),
    (("--profile=10",), ("--profile", "first:last")),
    (("--config.mesh.data=3",), ("config.mesh", "3 devices", "there are 1")),
    (("--config.data.clip.window_frames=15",), ("window_frames is 15", "multiple of chunk_frames 4")),
    (
        ("--config.data.recording.source=", "--config.data.records=nowhere", "--workdir=NEW"),
        ("nowhere", "precompute"),
    ),
    (("--config.optimizer.learning_rate=0.5",), ("config.optimizer.learning_rate", "--workdir")),
    (("--config.model.channels=9", "--workdir=NEW"), ("latent_shape", "expects [3, 4, 9]")),
    (("--config.optimizer.trainable=nothing", "--workdir=NEW"), ("trainable", "no parameter")),
    (("--config=configs/absent.py",), ("configs/absent.py", "no file")),
]
HANGS = ("--config.log.watchdog_minutes=0.0001", "--workdir=HANGS")


@pytest.fixture(scope="module")
def answers(folder: pathlib.Path) -> dict[tuple[str, ...], subprocess.CompletedProcess[str]]:
    """Results of the command for each of the mistakes, and for a watchdog that waits for 6 ms."""
    calls = [extra for extra, _ in MISTAKES] + [HANGS]
    names = {"--workdir=NEW": f"--workdir={folder / 'new'}", "--workdir=HANGS": f"--workdir={folder / 'hangs'}"}
    arguments = [commands.train_arguments(folder, *(names.get(x, x) for x in extra)) for extra in calls]
    results = commands.run_in_forks("jworld.train", arguments, folder / "answers", **ONE_DEVICE)
    return dict(zip(calls, results, strict=True))


@pytest.mark.parametrize(("extra", "parts"), MISTAKES)
def test_mistakes_end_in_one_sentence(
    folder: pathlib.Path,
    answers: dict[tuple[str, ...], subprocess.CompletedProcess[str]],
    extra: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    message = commands.one_sentence(answers[extra])
    for part in parts:
        assert part in message
    assert not (folder / "new" / "config.json").exists()


def test_a_launch_that_hangs_ends(answers: dict[tuple[str, ...], subprocess.CompletedProcess[str]]) -> None:
    result = answers[HANGS]
    assert result.returncode == errors.RESTART
    assert "error: no step ended for 0.0001 minutes (steps of this launch before: 0)" in result.stderr
    assert "train.py" in result.stderr


@pytest.mark.slow
def test_released_weights_start_another_run_on_their_own_latents_only(folder: pathlib.Path) -> None:
    released = folder / "released"
    result = commands.run("scripts.release_weights", f"--run={folder / 'run'}", f"--output={released}")
    assert result.returncode == 0, result.stderr
    printed = finish(folder, "second", f"--config.init_from={released}", "--config.steps=3")
    assert f"starting from the weights in {released}" in printed
    assert metrics.read(folder / "second")[0]["loss"] < metrics.read(folder / "run")[0]["loss"]

    original = linear.LinearAutoencoder.load(released / runs.ENCODERS / records.AUTOENCODER_FILE)
    weights = {**original.weights, "group.mean": original.weights["group.mean"] + np.float32(0.01)}
    linear.LinearAutoencoder(original.config, weights).save(folder / "changed.safetensors")
    other = folder / "other-autoencoder"
    autoencoder_flag = f"--autoencoder={folder / 'changed.safetensors'}"
    result = commands.run("jworld.precompute", f"--input={folder / 'episodes'}", f"--output={other}", autoencoder_flag)
    assert result.returncode == 0, result.stderr
    extra = (f"--config.init_from={released}", f"--config.data.records={other}")
    arguments = commands.train_arguments(folder, *extra, workdir="third")
    message = commands.one_sentence(commands.run("jworld.train", *arguments, **ONE_DEVICE))
    assert "autoencoder.hash" in message
    assert not (folder / "third").exists()


def test_dry_run_counts_the_published_model(tmp_path: pathlib.Path) -> None:
    result = commands.run("jworld.train", "--config=configs/ar_mem.py:8b", "--dry-run", f"--workdir={tmp_path / 'x'}")
    assert result.returncode == 0, result.stderr
    assert "8,557,933,856" in result.stdout
    assert not (tmp_path / "x").exists()


def test_one_process_at_a_time_trains_in_a_folder(folder: pathlib.Path) -> None:
    before = commands.checksums(folder / "run", 12)
    with workdirs.locked(folder / "run"):
        result = commands.run("jworld.train", *commands.train_arguments(folder, "--overwrite"), **ONE_DEVICE)
    assert result.returncode == 2
    assert "run is in use by process" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert commands.checksums(folder / "run", 12) == before
