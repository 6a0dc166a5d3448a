"""Print the largest memory of a run from launch to the end of step 2, in bytes, as a process of its own.

python measured_run.py CONFIG.json WEIGHTS: with "" instead of WEIGHTS the initial weights are drawn. If WEIGHTS is
absent, it is written first, in another process.
"""

import json
import pathlib
import sys
import tempfile
import threading
import types
from typing import Any, cast

import jax
import ml_collections
import numpy as np
from flax import nnx

from jworld import systems
from jworld.planning.program import Program
from jworld.systems import runs, training_job
from jworld.training import step, weights
from jworld.utils import config as run_config


def resident() -> int:
    """Return the anonymous memory of this process; mapped files do not count."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


class Watch:
    """The largest memory of this process since the start, in addition to that at the start."""

    def __init__(self) -> None:
        self._before, self._most, self._over = resident(), 0, threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.002):
            self._most = max(self._most, resident())

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        return self._most - self._before


def write_weights(config: ml_collections.ConfigDict, folder: pathlib.Path) -> None:
    """Write weights of value zero."""
    system = systems.create(config)
    with nnx.use_eager_sharding(False):
        shapes = nnx.state(nnx.eval_shape(lambda: system.init(nnx.Rngs(0))), nnx.Param)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    folder.mkdir()
    weights.save(zeros, folder / runs.WEIGHTS, np.float32)
    run_config.save(config, folder)


def measure(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> int:
    """Start a run and make two steps with batches of zeros."""
    job = training_job.TrainingJob.from_config(config, workdir)
    program = Program(config, jax.devices())
    batch = {name: np.zeros(entry.shape, entry.dtype) for name, entry in program.batch.items()}
    key = jax.random.key(0)
    # What the compiler itself needs is not in the plan: later compilations use this memory again.
    program.lower().compile()
    watch = Watch()
    manager = types.SimpleNamespace(latest_step=lambda: None)
    graphdef, state, shardings = training_job.start(job, cast(Any, None), cast(Any, manager), message=print)
    function = step.make_train_step(
        graphdef,
        job.system.loss,
        job.optimizer,
        shardings=shardings,
        batch_shardings=program.batch_shardings,
        mesh=job.mesh,
        loss_takes_ema=job.system.loss_takes_ema,
    )
    with jax.set_mesh(job.mesh):
        for _ in range(2):
            state, _ = jax.block_until_ready(function(state, jax.device_put(batch, program.batch_shardings), key))
    return watch.stop()


def main() -> None:
    config = ml_collections.ConfigDict(json.loads(pathlib.Path(sys.argv[1]).read_text()))
    config.init_from = sys.argv[2]
    if sys.argv[2] and not pathlib.Path(sys.argv[2]).exists():
        write_weights(config, pathlib.Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(measure(config, pathlib.Path(folder)))


if __name__ == "__main__":
    main()
