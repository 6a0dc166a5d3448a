"""Checks of a training run that need neither data nor weights nor the devices of its mesh, and their summary."""

import pathlib

import jax
import numpy as np
import rich.table
from flax import nnx

from jworld.data import records
from jworld.parallel import mesh as mesh_lib
from jworld.systems import initial_weights, training_job
from jworld.systems.training_job import TrainingJob
from jworld.training import state as train_state
from jworld.utils import errors, hub_folders, nnx_types


def describe(job: TrainingJob) -> rich.table.Table:
    """Return a table of parameters, mesh and batch; a `UserError` if no parameter trains or the mesh is invalid."""
    config = job.config
    with nnx.use_eager_sharding(False):
        abstract = nnx.state(nnx.eval_shape(lambda: job.system.init_training(nnx.Rngs(0))), nnx.Param)
    trained, frozen, critic = train_state.divide(abstract, job.trainable, job.optimizer)
    training_job.check_trainable(job, trained)
    others = frozen if critic is None else nnx.merge_state(frozen, critic)
    own, total = np.sum([*train_state.sizes(trained, others).values()], axis=0)
    table = rich.table.Table("", "", show_header=False)
    table.add_row("parameters", f"{total:,}")
    table.add_row("trainable", f"{own:,}")
    if critic is not None:
        count = sum(leaf.size for leaf in jax.tree.leaves(critic))
        table.add_row("trainable critic", f"{count:,}, {job.optimizer.critic_updates} updates per step")
    table.add_row("mesh", ", ".join(f"{name} {size}" for name, size in config.mesh.items()))
    length = f"{config.steps:,}" if config.steps else "as many as the epochs have"
    epochs = f", {config.epochs:g} epochs" if config.get("epochs", 0) else ""
    table.add_row("steps", f"{length} of global batch {config.global_batch:,}{epochs}")
    for name, entry in job.spec.items():
        table.add_row(f"batch {name}", f"{np.dtype(entry.dtype).name} {list(entry.shape)}")
    return table


def check(job: TrainingJob, *, overwrite: bool) -> None:
    """Check folders, initial weights, mesh and batch on a mesh of the stated size.

    Raises:
      UserError: what the run itself would end with before its first step.
    """
    training_job.check_folders(job, overwrite=overwrite)
    mesh = mesh_lib.describe_mesh(**job.config.mesh)
    training_job.check_mesh(job, mesh)
    state = train_state.described_state(
        job.system.init_training, trainable=job.trainable, optimizer=job.optimizer, mesh=mesh
    )
    if training_job.starts(job, overwrite=overwrite):
        _check_initial(job, nnx.merge_state(state.params, state.others))


def _check_initial(job: TrainingJob, initial: nnx_types.State) -> None:
    """Check that the models of initial weights fit."""
    for name, directory in job.system.parts.items():
        initial_weights.compare(directory, initial[name])
    if job.config.init_from:
        initial_weights.compare(hub_folders.find(job.config.init_from), initial)


def counted(job: TrainingJob, *, overwrite: bool) -> tuple[TrainingJob, str]:
    """Return the run with the steps of its epochs and a sentence about its data set; both need the data set.

    The sentence is the problem with which the run would end, "" without one.
    """
    folder = pathlib.Path(job.config.data.records)
    if not (folder / records.MANIFEST).is_file():
        return job, f"{folder} is not made yet, so its records are not checked"
    try:
        job = job.counted(job.system.data.batches("train").records)
        training_job.check_encoders(job, overwrite=overwrite)
    except errors.UserError as error:
        return job, f"a run would end with: {error}"
    return job, ""
