"""Runs of `toy_train.py` in several processes of one machine, with 8 devices in total."""

import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import commands
import jax
import numpy as np

from jworld.systems import runs
from jworld.training import checkpoints, optimizers
from jworld.training import state as train_state

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent / "training"))

import toy  # noqa: E402

MESHES = {"rows": {"data": 2, "fsdp": 2, "sequence": 2}, "tokens": {"data": 1, "fsdp": 1, "sequence": 8}}


def start(
    folder: pathlib.Path,
    workdir: str,
    *extra: str,
    processes: int = 2,
    mesh: str = "rows",
    mistake: int | None = None,
    wait: float = 0.0,
    only: Mapping[int, str] | None = None,
) -> list[subprocess.Popen[str]]:
    """Start the processes of one run with 8 devices in total; each prints to a file named after it.

    `only` maps a process to an argument of its own.
    """
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    arguments = [
        f"--config={HERE / 'toy_recipe.py'}",
        f"--workdir={folder / workdir}",
        f"--config.data.records={folder / 'data'}",
        *(f"--config.mesh.{name}={size}" for name, size in MESHES[mesh].items()),
        *extra,
    ]
    started = []
    for index in range(processes):
        several = [f"--coordinator=localhost:{port}", f"--num-processes={processes}", f"--process-id={index}"]
        own = [*arguments, *(several if processes > 1 else []), *([only[index]] if only and index in only else [])]
        command = [sys.executable, str(HERE / "toy_train.py"), *commands.merged(own)]
        with (folder / f"{workdir}.{index}").open("w") as output:
            started.append(
                subprocess.Popen(
                    [*command, "--mistake"] if index == mistake else command,
                    env=environment(8 // processes, wait),
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
    return started


def environment(devices: int, wait: float) -> dict[str, str]:
    """Return the environment of a process with virtual devices and batches that take so many seconds."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "TOY_SECONDS_PER_BATCH": str(wait)}


def finish(started: list[subprocess.Popen[str]], timeout: float = 300) -> list[int]:
    """Return the exit codes; a process that still runs after `timeout` seconds is a failure."""
    try:
        return [process.wait(timeout) for process in started]
    finally:
        for process in started:
            process.kill()


def printed(folder: pathlib.Path, workdir: str, index: int) -> str:
    return (folder / f"{workdir}.{index}").read_text()


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def parameters(run: pathlib.Path, step: int) -> list[np.ndarray]:
    """Read the trained, EMA and frozen parameters of a checkpoint on one device."""
    optimizer = optimizers.make_optimizer(optimizers.OptimizerConfig(name="muon", ema_decay=0.9), steps=9)
    _, abstract, _ = train_state.abstract_state(
        lambda rngs: toy.Toy(toy.WIDTH, rngs=rngs),
        trainable=train_state.path_filter("blocks/.*"),
        optimizer=optimizer,
        mesh=toy.make_mesh((1, 1, 1)),
    )
    state, _ = checkpoints.Checkpoints(run / runs.CHECKPOINTS, create=False).restore(abstract, step)
    return [np.asarray(leaf) for leaf in jax.tree.leaves((state.params, state.ema, state.frozen))]
