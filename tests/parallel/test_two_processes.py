"""`jworld.train` in two processes of 4 devices: the parameters of one process of 8, and an error when one dies."""

import pathlib
import re
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from jworld.systems import runs
from jworld.training import metrics
from jworld.utils import errors

sys.path.append(str(pathlib.Path(__file__).parent))

from toy_processes import finish, parameters, printed, start, wait_until

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def straight(folder: pathlib.Path) -> pathlib.Path:
    """Train without interruption in two processes."""
    codes = finish(start(folder, "straight"))
    assert codes == [0, 0], printed(folder, "straight", 0) + printed(folder, "straight", 1)
    return folder / "straight"


@pytest.fixture(scope="module")
def one(folder: pathlib.Path) -> pathlib.Path:
    """Train the same run in one process of 8 devices."""
    assert finish(start(folder, "one", processes=1)) == [0], printed(folder, "one", 0)
    return folder / "one"


@pytest.mark.parametrize("mesh", ["rows", pytest.param("tokens", marks=pytest.mark.slow)])
def test_two_processes_train_the_same_parameters_as_one(
    folder: pathlib.Path, straight: pathlib.Path, one: pathlib.Path, mesh: str
) -> None:
    if mesh == "tokens":
        straight = folder / "tokens"
        assert finish(start(folder, "tokens", mesh=mesh)) == [0, 0], printed(folder, "tokens", 0)
    moved = [np.abs(a - b).max() for a, b in zip(parameters(one, 9), parameters(one, 3), strict=True)]
    assert max(moved) > 1e-3
    for a, b in zip(parameters(one, 9), parameters(straight, 9), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    losses = [[row["loss"] for row in metrics.read(run)] for run in (one, straight)]
    assert len(losses[1]) == 9
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_held_out_measurements_take_all_processes(
    folder: pathlib.Path, straight: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during = ("--config.evaluation.interval=4", "--config.sample.interval=4")
    assert finish(start(folder, "both", *during)) == [0, 0], printed(folder, "both", 0) + printed(folder, "both", 1)
    assert "config.sample.interval: nothing is sampled during a multi-process run" in printed(folder, "both", 0)
    held_out = [row for row in metrics.read(folder / "both") if "val_loss" in row]
    assert [row["step"] for row in held_out] == [4, 8, 9]
    assert held_out[0]["val_loss"] != held_out[1]["val_loss"]

    # One process fails to read: no process waits for it, and the training ends as without measurements.
    monkeypatch.setenv("TOY_VAL_FAILS_IN", "1")
    assert finish(start(folder, "failing", during[0])) == [0, 0], printed(folder, "failing", 0)
    assert "no evaluation after step 4: another process could not read" in printed(folder, "failing", 0)
    expected = parameters(straight, 9)
    for name in ("both", "failing"):
        for a, b in zip(parameters(folder / name, 9), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_only_process_0_prints_and_writes(folder: pathlib.Path, straight: pathlib.Path) -> None:
    assert "step 9/9" in printed(folder, "straight", 0)
    assert "next: python -m jworld.evaluate" in printed(folder, "straight", 0)
    # Gloo reports its connections from several threads at once, so the pieces of a line have any order.
    gloo = r"\[Gloo\] Rank | is connected to | peer ranks\. |Expected number of connected peer ranks is : |\d|\s"
    assert re.sub(gloo, "", printed(folder, "straight", 1)) == ""
    assert len(list((straight / "tensorboard").iterdir())) == 1


@pytest.mark.slow
def test_kills_and_preemption_end_both_and_the_same_command_resumes(
    folder: pathlib.Path, straight: pathlib.Path
) -> None:
    def interrupt(when: Callable[[], bool], victim: int, kind: signal.Signals) -> str:
        """Start a run, send one process a signal once `when` is true; return the output of the other."""
        # JAX checks for a notice every second: steps must be slow enough for some to be left.
        started = start(folder, "rough", wait=4.0 if kind == signal.SIGTERM else 2.0)
        wait_until(when)
        began = time.monotonic()
        started[victim].send_signal(kind)
        codes = finish(started)
        assert time.monotonic() - began < 120
        assert codes[victim] == (-signal.SIGKILL if kind == signal.SIGKILL else errors.RESTART)
        assert codes[1 - victim] == errors.RESTART, printed(folder, "rough", 1 - victim)
        return printed(folder, "rough", 1 - victim)

    def stepped() -> bool:
        return re.search(r"^step \d/9", printed(folder, "rough", 0), re.M) is not None

    def saved() -> bool:
        return (folder / "rough" / runs.CHECKPOINTS / "3").is_dir()

    host = re.escape(socket.gethostname())
    assert re.search(rf"^error: process 1 \({host}\) ended unexpectedly", interrupt(stepped, 1, signal.SIGKILL), re.M)
    assert re.search(rf"^error: process 0 \({host}\) ended unexpectedly", interrupt(saved, 0, signal.SIGKILL), re.M)
    stopped = interrupt(stepped, 1, signal.SIGTERM)
    assert re.search("resuming after step [36]", stopped)
    step = int(re.search(r"stopped after step (\d)", stopped)[1])
    assert (folder / "rough" / runs.CHECKPOINTS / str(step)).is_dir()
    assert finish(start(folder, "rough")) == [0, 0], printed(folder, "rough", 0)
    assert f"resuming after step {step}" in printed(folder, "rough", 0)
    for a, b in zip(parameters(straight, 9), parameters(folder / "rough", 9), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_set_aside_for_the_next_launch(folder: pathlib.Path, straight: pathlib.Path) -> None:
    shutil.copytree(straight, folder / "damaged")
    blocks = [path for path in (folder / "damaged" / runs.CHECKPOINTS / "9" / "params").rglob("d/*") if path.is_file()]
    largest = max(blocks, key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    assert finish(start(folder, "damaged", "--config.steps=10")) == [errors.RESTART] * 2
    for index in range(2):
        reported = re.findall(r"^error: .*", printed(folder, "damaged", index), re.M)
        assert len(reported) == 1
        assert "checkpoint step 9" in reported[0]
        assert "set aside" in reported[0]
    names = {path.name for path in (folder / "damaged" / runs.CHECKPOINTS).iterdir()}
    assert {"6", "damaged-9"} <= names
    assert "9" not in names


def test_a_user_error_in_one_process_ends_all(folder: pathlib.Path) -> None:
    assert finish(start(folder, "mistaken", mistake=1)) == [errors.MISTAKE] * 2
    assert "error: this host is out of order" in printed(folder, "mistaken", 1)
    assert re.search(r"^error: process 1 \(.*\): this host is out of order$", printed(folder, "mistaken", 0), re.M)
    assert not (folder / "mistaken" / "config.json").exists()


def test_processes_with_another_config_never_start(folder: pathlib.Path) -> None:
    only = {1: "--config.optimizer.learning_rate=0.5"}
    assert finish(start(folder, "configs", only=only)) == [errors.MISTAKE] * 2
    for index in range(2):
        (reported,) = re.findall(r"^error: .*", printed(folder, "configs", index), re.M)
        assert "process 1" in reported
        assert "config.optimizer.learning_rate 0.5 (process 0: 0.01)" in reported
        assert "Traceback" not in printed(folder, "configs", index)
    assert not (folder / "configs").exists()


@pytest.mark.slow
def test_processes_with_other_data_never_start(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_OTHER_DATA_IN", "1")
    assert finish(start(folder, "data-sets")) == [errors.MISTAKE] * 2
    for index in range(2):
        (reported,) = re.findall(r"^error: .*", printed(folder, "data-sets", index), re.M)
        assert "process 1" in reported
        assert "data: records 63 (process 0: 64)" in reported


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_a_stopped_process_ends_the_other_with_its_name(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch, victim: int
) -> None:
    monkeypatch.setenv("JWORLD_HANG_SECONDS", "12")
    started = start(folder, f"stopped-{victim}", wait=1.0)
    wait_until(lambda: re.search(r"^step \d/9", printed(folder, f"stopped-{victim}", 0), re.M) is not None)
    started[victim].send_signal(signal.SIGSTOP)
    try:
        assert started[1 - victim].wait(60) == errors.RESTART
    finally:
        for process in started:
            process.kill()
            process.wait()
    output = printed(folder, f"stopped-{victim}", 1 - victim)
    assert re.search(rf"^error: process {victim} \(.*\) has given no sign of life for 1\d s: it hangs", output, re.M)
    assert "Traceback" not in output
    assert "***" not in output


@pytest.mark.slow
def test_a_process_that_compiles_for_long_is_waited_for(
    folder: pathlib.Path, straight: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under load one process reaches the first step long after the other: Gloo alone waits for 30 seconds."""
    monkeypatch.setenv("TOY_COMPILE_SECONDS", "45")
    started = start(folder, "paused")
    assert finish(started) == [0, 0], printed(folder, "paused", 0) + printed(folder, "paused", 1)
    for a, b in zip(parameters(straight, 9), parameters(folder / "paused", 9), strict=True):
        np.testing.assert_array_equal(a, b)
