"""Ctrl-C, sent to all processes of a command as a terminal does: one line at any moment, and a save while it trains."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import commands
import pytest

from jworld.systems import runs
from jworld.utils import interrupts

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

INSPECT = ("-m", "conversion", "inspect", "assets/starter")
DRY_RUN = ("-m", "jworld.train", "--config=configs/ar_mem.py", "--dry-run")
HELP = ("-m", "jworld", "generate", "--help")


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *commands.merged(arguments)],
        cwd=commands.ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def interrupt(process: subprocess.Popen[str]) -> str:
    """Interrupt all processes of a command and return the line that it printed."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        _, printed = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == interrupts.INTERRUPTED, printed
    # XLA warns of slow compilation on a busy machine.
    lines = [line for line in printed.splitlines() if line.startswith("interrupted") or "Error" in line]
    assert len(lines) == 1, printed
    assert "Traceback" not in printed
    return lines[0]


@pytest.mark.parametrize("seconds", [0.3, 0.7, 1.5, 2.5])
@pytest.mark.parametrize("command", [INSPECT, DRY_RUN, HELP], ids=["inspect", "dry-run", "help"])
def test_any_moment_of_a_command(command: tuple[str, ...], seconds: float) -> None:
    process = start(*command)
    time.sleep(seconds)
    if process.poll() is not None:
        assert process.communicate()[1] == ""
        return
    os.killpg(process.pid, signal.SIGINT)
    _, printed = process.communicate(timeout=100)
    # Python itself starts in the first tenth of a second, and dies silently when it ends.
    assert process.returncode in (0, interrupts.INTERRUPTED, -signal.SIGINT), printed
    assert len(printed.splitlines()) <= 1
    assert not printed or printed.startswith("interrupted")


def ended(group: int) -> bool:
    """Return whether all processes of a group end within some seconds, such as workers of a recording."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_a_recording_leaves_nothing(tmp_path: pathlib.Path) -> None:
    output = tmp_path / "episodes"
    process = start("scripts/record_episodes.py", "--source=rooms", "--episodes=100", f"--output={output}")
    deadline = time.monotonic() + 100
    while not list(tmp_path.rglob("*.mp4")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert interrupt(process) == "interrupted: the command ends; press Ctrl-C again to end at once"
    assert list(tmp_path.iterdir()) == []
    assert ended(process.pid)


def test_a_run_saves_and_resumes(tmp_path: pathlib.Path) -> None:
    arguments = ("-m", "jworld.train", *commands.train_arguments(tmp_path, "--config.checkpoint.interval=1000"))
    process = start(*arguments, "--config.steps=100000")
    assert process.stdout is not None
    assert any(line.startswith("step 2/") for line in process.stdout)
    assert interrupt(process).startswith("interrupted: the run saves after this step and ends")
    (saved,) = (int(path.name) for path in (tmp_path / "run" / runs.CHECKPOINTS).iterdir())
    assert saved >= 2
    process = start(*arguments, f"--config.steps={saved + 2}")
    output, printed = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    assert f"resuming after step {saved}" in output
