"""Run the project's commands as a user does, on a model and a data set small enough for tests."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent

MODEL = (
    "--config.model.width=32",
    "--config.model.num_heads=2",
    "--config.model.num_layers=2",
    "--config.model.rope_dims=(4,6,6)",
    "--config.model.channels=8",
)


def train_arguments(folder: pathlib.Path, *extra: str, workdir: str = "run") -> list[str]:
    """Arguments of a run on recorded rooms in `folder`: 8 short episodes, 2 layers of width 32, 12 steps."""
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


def run(module: str, *arguments: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def start(module: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def one_sentence(result: subprocess.CompletedProcess[str]) -> str:
    """The error that a command ended with: exit code 2 and one line, never a traceback."""
    assert result.returncode == 2, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    return errors[0]
