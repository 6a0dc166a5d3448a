"""Print the largest memory of a run from launch to the end of step 2, in bytes, as a process of its own.

python measured_run.py CONFIG.json WEIGHTS: with "" instead of WEIGHTS the initial weights are drawn. If WEIGHTS is
absent, it is written first, in another process.
"""

import json
import pathlib
import sys
import tempfile
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

sys.path.append(str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import peak_memory


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
    # What the compiler itself needs is not in the plan: later compilations use this memory again.
    program.lower().compile()
    with peak_memory.Peak() as peak:
        _start_and_step(job, program, batch)
    return peak.bytes


def _start_and_step(job: training_job.TrainingJob, program: Program, batch: dict[str, np.ndarray]) -> None:
    key = jax.random.key(0)
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
