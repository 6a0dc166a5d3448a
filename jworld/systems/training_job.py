"""A training run before its first step: its parts, the checks that precede it, and its initial state."""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping

import jax
import ml_collections
from flax import nnx

from jworld import systems
from jworld.data import pipeline, records
from jworld.encoders import choices
from jworld.evaluation import settings
from jworld.parallel import agreement
from jworld.parallel import mesh as mesh_lib
from jworld.systems import common_keys, initial_weights, recipes, runs, workdirs
from jworld.systems.base import AnySystem
from jworld.training import checkpoints, emergency, hub, metrics, optimizers
from jworld.training import state as train_state
from jworld.utils import config as run_config
from jworld.utils import errors, hub_folders, nnx_types

#: Keys whose values a resumed run may change, because they do not affect the computation.
MAY_CHANGE = ("mesh.", "log.", "checkpoint.", "sample.", "evaluation.", "data.threads", "data.prefetch", "model.remat")

State = train_state.TrainState


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """The parts of a training run. No device is touched before `mesh` is used.

    Attributes:
      config: the resolved config.
      workdir: folder of the run.
      system: the system that the config names.
      spec: arrays of a training batch.
      optimizer: built from `config.optimizer`.
      log, hub, emergency, samples, evaluation: sections of the config.
      profile: steps to trace.
      accept_data: resume with another data set than that of the checkpoint.
    """

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    system: AnySystem
    spec: dict[str, records.ArraySpec]
    optimizer: optimizers.Optimizer
    log: metrics.LogConfig
    hub: hub.HubConfig
    emergency: emergency.EmergencyConfig
    samples: settings.SamplesConfig
    evaluation: settings.EvaluationConfig
    profile: range
    accept_data: bool = False

    @classmethod
    def from_config(
        cls,
        config: ml_collections.ConfigDict,
        workdir: pathlib.Path,
        *,
        profile: range = range(0),
        accept_data: bool = False,
    ) -> "TrainingJob":
        """Build all parts; a `UserError` names a wrong key. A run of `config.epochs` has no steps before `counted`."""
        common_keys.check_required(config)
        config = systems.completed(config)
        _check_length(config)
        system = systems.create(config)
        recipes.check_unknown(config, system)
        return cls(
            config=config,
            workdir=workdir,
            system=system,
            spec=system.batch_spec(config.global_batch),
            optimizer=optimizers.from_config(config, steps=max(config.steps, 1)),
            log=run_config.section(metrics.LogConfig, config.log, "log"),
            hub=run_config.section(hub.HubConfig, config.checkpoint.get("hub", {}), "checkpoint.hub"),
            emergency=run_config.section(
                emergency.EmergencyConfig, config.checkpoint.get("emergency", {}), "checkpoint.emergency"
            ),
            samples=common_keys.samples(config),
            evaluation=run_config.section(settings.EvaluationConfig, config.get("evaluation", {}), "evaluation"),
            profile=profile,
            accept_data=accept_data,
        )

    def counted(self, records: int) -> "TrainingJob":
        """Return the run with the steps that `config.epochs` passes through `records` records have.

        Without epochs it is the run itself.

        Raises:
          UserError: there is no whole step.
        """
        epochs, batch = self.config.get("epochs", 0), self.config.global_batch
        if not epochs:
            return self
        steps = int(epochs * records) // batch
        if steps == 0:
            raise errors.UserError(
                f"config.epochs is {epochs:g} and there are {records} records, less than a batch of "
                f"config.global_batch {batch}: raise epochs, or lower global_batch"
            )
        config = self.config.copy_and_resolve_references()
        with config.unlocked():
            config.steps = steps
        return dataclasses.replace(self, config=config.lock(), optimizer=optimizers.from_config(config, steps=steps))

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The mesh of the config on all devices; a `UserError` if they or the batch do not fit."""
        mesh = mesh_lib.make_mesh(**self.config.mesh)
        check_mesh(self, mesh)
        return mesh

    @property
    def trainable(self) -> train_state.PathFilter:
        """The filter of parameters that train."""
        return train_state.path_filter(self.optimizer.config.trainable)


def _check_length(config: ml_collections.ConfigDict) -> None:
    """Raise a `UserError` unless exactly one of steps and epochs is set."""
    steps, epochs = config.steps, config.get("epochs", 0)
    if (steps > 0) == (epochs > 0):
        raise errors.UserError(
            f"config.steps is {steps} and config.epochs {epochs:g}, expected one above 0 and the other 0: set "
            "config.steps, or set config.epochs and config.steps to 0"
        )


def to_devices(
    batch: pipeline.Batch, spec: dict[str, records.ArraySpec], shardings: Mapping[str, jax.sharding.NamedSharding]
) -> dict[str, jax.Array]:
    """Assemble global arrays from this process's rows; with the global shape, a device may hold a part of each row."""
    return {
        name: jax.make_array_from_process_local_data(shardings[name], array, (spec[name].shape[0], *array.shape[1:]))
        for name, array in batch.items()
    }


def starts(job: TrainingJob, *, overwrite: bool) -> bool:
    """Return whether the run starts at step 0, and does not resume."""
    return overwrite or not (job.workdir / runs.CHECKPOINTS).is_dir()


def check_mesh(job: TrainingJob, mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh) -> None:
    """Raise a `UserError` if the batch or the tokens of an example do not divide over the mesh."""
    mesh_lib.check_batch(mesh, job.config.global_batch, job.config.optimizer.get("accumulate", 1))
    if dict(job.config.mesh) != dict(mesh.shape):
        config = ml_collections.ConfigDict(job.config.to_dict())
        config.mesh = dict(mesh.shape)
        # The system checks the sizes that the mesh has where the config says -1.
        systems.create(config.lock())


def check_trainable(job: TrainingJob, trained: nnx_types.State) -> None:
    """Raise a `UserError` if no parameter trains."""
    if not jax.tree.leaves(trained):
        raise errors.UserError(
            f"config.optimizer.trainable is {job.optimizer.config.trainable!r}, which matches no parameter; "
            "paths look like blocks/image/query/kernel"
        )


def check_folders(job: TrainingJob, *, overwrite: bool) -> None:
    """Check the workdir and the initial weights before data are made for them.

    Raises:
      UserError: the workdir is of another run, or `config.init_from` has no weights or those of another system.
    """
    if overwrite:
        workdirs.check_deletable(job.workdir)
    else:
        _check_workdir(job.config, job.workdir)
    if starts(job, overwrite=overwrite):
        for directory in job.system.parts.values():
            runs.check_weights(directory)
        if job.config.init_from:
            _check_initial(job.config)
    _check_step(job, overwrite=overwrite)
    autoencoder = choices.from_config(job.config).autoencoder
    if autoencoder is not None and not pathlib.Path(autoencoder).exists():
        raise errors.UserError(
            f"config.sample.encoders.autoencoder: {autoencoder} does not exist: expected the file of an autoencoder, "
            "or a folder with autoencoder.safetensors"
        )


def _check_step(job: TrainingJob, *, overwrite: bool) -> None:
    """Raise a `UserError` if `config.checkpoint.step` names a checkpoint that does not exist."""
    step = job.config.checkpoint.step
    if step < 0:
        return
    folder = job.workdir / runs.CHECKPOINTS
    steps = (
        [] if overwrite or not folder.is_dir() else [path.name for path in folder.iterdir() if path.name.isdecimal()]
    )
    if str(step) not in steps:
        found = ", ".join(sorted(steps, key=int)) or "no checkpoint, so that the run would start at step 0"
        raise errors.UserError(
            f"config.checkpoint.step is {step}, but {folder} holds {found}: choose another, or -1 for the newest"
        )


def _check_initial(config: ml_collections.ConfigDict) -> None:
    initial, advice = config.init_from, "name others with --config.init_from"
    directory = hub_folders.find(initial)
    if not (directory / run_config.FILE_NAME).is_file():
        raise errors.UserError(
            f"config.init_from: {initial} has no {run_config.FILE_NAME}, so no weights to start from: make "
            f"that run first (the recipe's first lines name it), or {advice}"
        )
    runs.check_weights(directory)
    system = run_config.load(directory).system
    if system != config.system:
        raise errors.UserError(
            f"config.init_from: the model in {initial} is of the system {system}, expected {config.system}: {advice}"
        )


def _check_workdir(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    if (workdir / run_config.FILE_NAME).is_file():
        stored = run_config.load(workdir)
        # A schedule that decays ends at `steps`: another number there would be another run.
        # Steps from epochs follow from the data set, whose identity is compared with the checkpoint's.
        is_free = config.optimizer.schedule.startswith("constant") or config.get("epochs", 0)
        free = (*MAY_CHANGE, "steps") if is_free else MAY_CHANGE
        checkpoints.require_same_config(workdir, stored.to_dict(), config.to_dict(), may_change=free)
    elif any(path.is_file() and path.name != workdirs.LOCK for path in workdir.rglob("*")):
        raise errors.UserError(f"--workdir {workdir} holds files of something else: choose an empty folder")


def check_encoders(job: TrainingJob, *, overwrite: bool) -> None:
    """Raise a `UserError` if the weights to resume or start from belong to other encoders than the data set's."""
    for folder in (job.workdir, hub_folders.find(job.config.init_from)):
        encoders = folder / runs.ENCODERS
        if (encoders / records.MANIFEST).is_file() and not (overwrite and folder == job.workdir):
            job.system.data.check_kept(encoders)


def open_emergency(job: TrainingJob, *, message: Callable[[str], object]) -> emergency.EmergencyCheckpoints:
    """Return the emergency checkpoints of a run, which belong to its config and to the code and packages in use."""
    # A config that may change keeps the run what it is; the mesh is compared by what the processes hold.
    parts = {
        "the config": agreement.of_config(job.config.to_dict(), may_differ=(*MAY_CHANGE, "steps")),
        "the program": agreement.of_program(),
    }
    facts = {
        name: hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest() for name, part in parts.items()
    }
    return emergency.EmergencyCheckpoints(job.emergency, job.workdir, facts, message=message)


def start(
    job: TrainingJob,
    dataset: pipeline.BatchIterator,
    manager: checkpoints.Checkpoints,
    *,
    memory: emergency.EmergencyCheckpoints | None = None,
    message: Callable[[str], object],
) -> tuple[nnx_types.GraphDef, State, State]:
    """Return graph definition, state and shardings: restored, started from `config.init_from`, or drawn at random."""
    key, parts, init = jax.random.key(job.config.seed), job.system.parts, job.system.init_training
    graphdef, abstract, shardings = train_state.abstract_state(
        init, trainable=job.trainable, optimizer=job.optimizer, mesh=job.mesh
    )
    if (state := _restore(job, abstract, dataset, manager, memory, message=message)) is not None:
        return graphdef, state, shardings
    check_trainable(job, abstract.params)
    if not job.config.init_from and not parts:
        state = train_state.draw_state(
            init, trainable=job.trainable, optimizer=job.optimizer, shardings=shardings, key=key, mesh=job.mesh
        )
        return graphdef, state, shardings
    # Weights are read to their places before anything else is allocated.
    params = initial_weights.load_parts(nnx.merge_state(abstract.params, abstract.others), parts)
    notes = [f"the weights of the {name} are those in {folder}" for name, folder in parts.items()]
    if job.config.init_from:
        message(f"starting from the weights in {job.config.init_from}")
        params, more = initial_weights.load_initial(
            hub_folders.find(job.config.init_from), params, copies=job.system.copies, parts=parts
        )
        notes += more
    params = train_state.draw_missing(init, params, key=key, mesh=job.mesh)
    divided = train_state.divide(params, job.trainable, job.optimizer)
    state = train_state.start_state(*divided, optimizer=job.optimizer, shardings=shardings, mesh=job.mesh)
    for note in notes:
        message(note)
    return graphdef, state, shardings


def _restore(
    job: TrainingJob,
    abstract: State,
    dataset: pipeline.BatchIterator,
    manager: checkpoints.Checkpoints,
    memory: emergency.EmergencyCheckpoints | None,
    *,
    message: Callable[[str], object],
) -> State | None:
    """Restore the newest checkpoint, from the memory of the hosts if possible; None if there is none."""
    newest, step = manager.latest_step(), job.config.checkpoint.step
    found = memory.restore(abstract, job.mesh, ordinary=newest, chosen=step >= 0) if memory else None
    if found is not None:
        state, position = found
    elif newest is None:
        return None
    elif step >= 0:
        state, position = manager.restore(abstract, step)
    else:
        state, position, problems = manager.restore_newest(abstract)
        for problem in problems:
            message(f"set aside: {problem.partition('; ')[0]}")
    if note := dataset.set_state(position, accept_data=job.accept_data):
        message(note)
    message(f"resuming after step {int(state.step)}")
    return state
