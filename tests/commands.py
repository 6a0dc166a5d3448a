"""Runs of the project's commands, with a model and a data set small enough for tests."""

import json
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


#: Program that imports a module once and calls its main in forks: the import takes longer than a refused command.
_IN_FORKS = """
import importlib, json, os, sys, traceback

module = importlib.import_module(sys.argv[1])
for line in sys.stdin:
    request = json.loads(line)
    if not (child := os.fork()):
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        code = 0
        try:
            sys.argv = [module.__file__, *request["arguments"]]
            module.main()
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def run_in_forks(
    module: str, calls: list[list[str]], folder: pathlib.Path, **environment: str
) -> list[subprocess.CompletedProcess[str]]:
    """Return the results of `run` for several argument lists with a single import; `folder` receives the outputs."""
    folder.mkdir(parents=True)
    requests = [
        {"arguments": arguments, "stdout": str(folder / f"{i}.out"), "stderr": str(folder / f"{i}.err")}
        for i, arguments in enumerate(calls)
    ]
    server = subprocess.run(
        [sys.executable, "-c", _IN_FORKS, module],
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
        for code, request in zip(server.stdout.split(), requests, strict=True)
    ]


def one_sentence(result: subprocess.CompletedProcess[str]) -> str:
    """Return the error of a command that ended with exit code 2 and one line, without traceback."""
    assert result.returncode == 2, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    return errors[0]
