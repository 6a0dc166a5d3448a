"""Launches of a command in forks of one process that has imported it, to kill many of them in little time."""

import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence

import commands


@dataclasses.dataclass(frozen=True)
class Ended:
    """A launch that has ended: exit code, output and seconds."""

    code: int
    printed: str
    seconds: float


class Launches:
    """Launches of the command `python -m MODULE`, one at a time, each in a fork."""

    def __init__(self, module: str, output: pathlib.Path) -> None:
        environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
        environment["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
        self._output = output
        self._server = subprocess.Popen(
            [sys.executable, commands.FORK_SERVER, module, "--no-samples"],
            cwd=commands.ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Launches":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: types.TracebackType | None) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(60)

    def run(self, *arguments: str, kill: Callable[[str], bool] | None = None, timeout: float = 900) -> Ended:
        """Run the command to its end, or kill it as soon as `kill` returns true for what it has printed so far."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._output.write_text("")
        began = time.monotonic()
        output = dict.fromkeys(("stdout", "stderr"), str(self._output))
        request = {"arguments": commands.merged(arguments), **output}
        print(json.dumps(request), file=self._server.stdin, flush=True)
        child = int(self._server.stdout.readline())
        status = pathlib.Path(f"/proc/{child}/stat")
        while _lives(status):
            late = time.monotonic() - began > timeout
            if late or (kill is not None and kill(self._output.read_text(errors="replace"))):
                os.kill(child, signal.SIGKILL)
                break
            time.sleep(0.003)
        code = int(self._server.stdout.readline())
        assert time.monotonic() - began < timeout, self._output.read_text()
        return Ended(code, self._output.read_text(errors="replace"), time.monotonic() - began)


def _lives(status: pathlib.Path) -> bool:
    try:
        return status.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def after(seconds: float) -> Callable[[str], bool]:
    """Kill so many seconds after the start."""
    end = time.monotonic() + seconds
    return lambda printed: time.monotonic() > end


def at_step(count: int, moments: random.Random) -> Callable[[str], bool]:
    """Kill at a random moment of the `count`-th step of a launch."""
    end: list[float] = []

    def kill(printed: str) -> bool:
        steps = sum(line.startswith("step ") for line in printed.splitlines())
        if steps >= count and not end:
            end.append(time.monotonic() + moments.random() * 0.3)
        return bool(end) and time.monotonic() > end[0]

    return kill


def when(happened: Callable[[], Sequence[object]]) -> Callable[[str], bool]:
    """Kill as soon as `happened` returns something."""
    return lambda printed: bool(happened())
