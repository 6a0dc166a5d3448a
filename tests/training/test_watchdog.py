"""A hanging process ends and prints its stacks."""

import subprocess
import sys
import time

from jworld.utils import errors

PROGRAM = """
import sys, threading, time
from jworld.training import watchdog

def stuck_in_a_collective():
    time.sleep(60)

with watchdog.Watchdog({minutes}) as watch:
    for _ in range(4):
        time.sleep(0.1)
        watch.beat()
    {hang}
"""


def run(hang: str, minutes: float = 0.3 / 60) -> tuple[subprocess.CompletedProcess[str], float]:
    began = time.monotonic()
    program = PROGRAM.format(minutes=minutes, hang=hang)
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    return result, time.monotonic() - began


def test_a_hang_ends_the_process_with_every_stack() -> None:
    result, seconds = run("threading.Thread(target=lambda: time.sleep(60)).start(); stuck_in_a_collective()")
    assert result.returncode == errors.RESTART
    assert seconds < 30
    message, *stacks = result.stderr.splitlines()
    assert "no step ended for 0.005 minutes (steps of this launch before: 4)" in message
    assert "config.log.watchdog_minutes" in message
    assert any("in stuck_in_a_collective" in line for line in stacks)
    assert any("in <lambda>" in line for line in stacks)


def test_steps_and_a_clean_end_leave_it_quiet() -> None:
    for minutes in (1.0, 0.0):
        result, _ = run("pass", minutes)
        assert (result.returncode, result.stderr) == (0, "")


def test_a_pause_may_take_longer() -> None:
    result, _ = run("with watch.paused(): time.sleep(1.5)")
    assert (result.returncode, result.stderr) == (0, "")
    result, _ = run("\n    with watch.paused(): time.sleep(0.5)\n    stuck_in_a_collective()")
    assert result.returncode == errors.RESTART


def test_a_hang_that_holds_the_interpreter_lock_ends_too() -> None:
    """`ctypes.PyDLL` holds the lock during a call."""
    hang = "watchdog._GRACE = 0.2; time.sleep(0.2); watch.beat(); import ctypes; ctypes.PyDLL(None).sleep(60)"
    result, seconds = run(hang)
    assert result.returncode == 1
    assert seconds < 30
    assert "Timeout" in result.stderr
