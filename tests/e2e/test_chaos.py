"""Ten kills at random moments of one run change nothing of what it ends with."""

import json
import pathlib
import random
import signal
import time

import commands
import pytest

from jworld.training import goodput, metrics
from jworld.utils import errors

pytestmark = [pytest.mark.e2e, pytest.mark.long]

STEPS, KILLS = 48, 10
ONE_DEVICE = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


def arguments(folder: pathlib.Path, workdir: str) -> list[str]:
    return commands.train_arguments(folder, f"--config.steps={STEPS}", workdir=workdir)


def finish(folder: pathlib.Path, workdir: str) -> None:
    result = commands.run("jworld.train", *arguments(folder, workdir), timeout=1200, **ONE_DEVICE)
    assert result.returncode == 0, result.stdout + result.stderr


def launch_and_kill(folder: pathlib.Path, moments: random.Random, number: signal.Signals) -> tuple[int, str]:
    """A launch that is sent a signal after up to four of its steps; (exit code, what it printed)."""
    process = commands.start("jworld.train", *arguments(folder, "killed"))
    assert process.stdout is not None
    target, printed, seen = moments.randint(0, 4), [], 0
    for line in process.stdout:
        printed.append(line)
        # The first step's line of the start comes before any step's own: a kill there meets no log line of this launch.
        seen += line.startswith(("first step", "step "))
        if seen == target + 1:
            time.sleep(moments.random() * 0.5)
            process.send_signal(number)
            seen += STEPS
    return process.wait(), "".join(printed)


def test_ten_kills_change_nothing(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", ONE_DEVICE["XLA_FLAGS"])
    finish(tmp_path, "run")
    moments = random.Random(0)
    signals = [signal.SIGKILL, signal.SIGTERM] * (KILLS // 2)
    moments.shuffle(signals)
    for number in signals:
        code, printed = launch_and_kill(tmp_path, moments, number)
        assert code == (-signal.SIGKILL if number == signal.SIGKILL else errors.RESTART), printed
    finish(tmp_path, "killed")
    sums = [commands.checksums(tmp_path / name, STEPS) for name in ("run", "killed")]
    assert sums[0] == sums[1]
    rows = [[(row["step"], row["loss"]) for row in metrics.read(tmp_path / name)] for name in ("run", "killed")]
    assert rows[0] == rows[1]
    account = json.loads((tmp_path / "killed" / goodput.FILE).read_text())
    assert account["launches"] == KILLS + 1
    assert 0 < account["goodput"] < json.loads((tmp_path / "run" / goodput.FILE).read_text())["goodput"]
