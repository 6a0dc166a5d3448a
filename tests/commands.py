"""Runs of the project's commands, with a model and a data set small enough for tests."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

from jworld.systems import runs

ROOT = pathlib.Path(__file__).parent.parent
FORK_SERVER = str(ROOT / "tests" / "fork_server.py")

MODEL = (
    "--config.model.width=32",
    "--config.model.num_heads=2",
    "--config.model.num_layers=2",
    "--config.model.rope_dims=(4,6,6)",
    "--config.model.channels=8",
)


def train_arguments(folder: pathlib.Path, *extra: str, workdir: str = "run") -> list[str]:
    """Return the arguments of a run on recorded rooms in `folder`: 8 short episodes, 2 layers of width 32, 12 steps."""
    return [
        "--config=configs/ar_mem.py:rooms",
        f"--workdir={folder / workdir}",
        *MODEL,
        f"--config.data.records={folder / 'records'}",
        f"--config.data.recording.directory={folder / 'episodes'}",
        "--config.data.recording.episodes=8",
        "--config.data.recording.frames=81",
        "--config.data.recording.image_size=(64,48)",
        "--config.data.clip.memory_points=200",
        "--config.steps=12",
        "--config.global_batch=8",
        "--config.checkpoint.interval=3",
        "--config.checkpoint.max_to_keep=10",
        "--config.log.interval=1",
        "--config.sample.rollout.num_steps=2",
        "--config.optimizer.schedule=constant",
        *extra,
    ]


def clip_arguments(folder: pathlib.Path, recipe: str, workdir: str, *extra: str) -> list[str]:
    """Return the arguments of a run on clips of 13 frames of recorded rooms in `folder`: 4 short episodes, width 48."""
    return [
        f"--config=configs/{recipe}",
        f"--workdir={folder / workdir}",
        "--config.model.width=48",
        f"--config.data.records={folder / 'records'}",
        f"--config.data.recording.directory={folder / 'episodes'}",
        "--config.data.recording.episodes=4",
        "--config.data.recording.frames=41",
        "--config.data.recording.image_size=(64,48)",
        "--config.data.encoding.clip_frames=13",
        "--config.data.clip.window_frames=4",
        "--config.global_batch=4",
        "--config.log.interval=1",
        *extra,
    ]


def checksums(run: pathlib.Path, step: int) -> dict[str, Any]:
    """Return the checksum of every leaf of a run's checkpoint, and of its data position."""
    path = run / runs.CHECKPOINTS / str(step) / "checksums" / "metadata"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def merged(arguments: Iterable[str]) -> list[str]:
    """Return arguments of which a later --config.a.b=value replaces an earlier one; commands refuse both."""
    last: dict[str, str] = {}
    for number, argument in enumerate(arguments):
        name = argument.partition("=")[0]
        last[name if name.startswith("--config.") and "=" in argument else str(number)] = argument
    return list(last.values())


def replaced(arguments: Iterable[str], *extra: str) -> list[str]:
    """Return arguments with those of `extra` in place of earlier options of the same names.

    The value of an option follows it or a "=".
    """
    names = {argument.partition("=")[0] for argument in extra if argument.startswith("-")}
    kept: list[str] = []
    following = iter(arguments)
    for argument in following:
        name, equals, _ = argument.partition("=")
        if name not in names:
            kept.append(argument)
        elif not equals:
            next(following, None)
    return [*kept, *extra]


def run(module: str, *arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *merged(arguments)],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *merged(arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_in_forks(
    module: str, calls: list[list[str]], folder: pathlib.Path, **environment: str
) -> list[subprocess.CompletedProcess[str]]:
    """Return the results of `run` for several argument lists with a single import; `folder` receives the outputs."""
    folder.mkdir(parents=True)
    requests = [
        {"arguments": merged(arguments), "stdout": str(folder / f"{i}.out"), "stderr": str(folder / f"{i}.err")}
        for i, arguments in enumerate(calls)
    ]
    server = subprocess.run(
        [sys.executable, FORK_SERVER, module],
        input="".join(json.dumps(request) + "\n" for request in requests),
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return [
        subprocess.CompletedProcess(
            request["arguments"],
            int(code),
            pathlib.Path(request["stdout"]).read_text(),
            pathlib.Path(request["stderr"]).read_text(),
        )
        for code, request in zip(server.stdout.split()[1::2], requests, strict=True)
    ]


def one_sentence(result: subprocess.CompletedProcess[str]) -> str:
    """Return the error of a command that ended with exit code 2 and one line, without traceback."""
    assert result.returncode == 2, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    return errors[0]
