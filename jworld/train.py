"""python -m jworld.train --config=configs/ar_mem.py

Trains a recipe: makes its embedded data where absent, trains or resumes, and rolls the trained model out at the end.
"""

import argparse
import pathlib
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
import rich.console
import rich.table
from absl import flags
from flax import nnx
from jax.sharding import Mesh
from ml_collections import config_flags

from jworld import rollouts, systems
from jworld.data import pipeline, records
from jworld.parallel import axes, startup
from jworld.parallel import mesh as mesh_lib
from jworld.systems import runs
from jworld.training import checkpoints, hub, metrics, optimizers, preemption, profiling, rates, step, watchdog
from jworld.training import state as train_state
from jworld.utils import compilation, errors, hardware
from jworld.utils import config as run_config

_CONFIG = run_config.define_flag()
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Folder of the run; default runs/<recipe>-<variant>. The same command again resumes the run in it."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Delete what an earlier run left in the workdir and start anew.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "Of several processes: host:port of process 0; found on TPU pods, GKE and SLURM."
)
_NUM_PROCESSES = flags.DEFINE_integer("num-processes", None, "Of several processes: how many; found in those places.")
_PROCESS_ID = flags.DEFINE_integer("process-id", None, "Of several processes: which of them this is, from 0.")
_DRY_RUN = flags.DEFINE_bool(
    "dry-run", False, "Build everything abstractly, print parameters, batch and mesh, and stop."
)
_FROM_JSON = flags.DEFINE_string(
    "from-json", "", "Print the recipe that does what a training config of the original TheWorld says, and stop."
)
_PROFILE = flags.DEFINE_string(
    "profile", "", "Steps to trace, first:last, such as 10:15; the trace goes to <workdir>/profile for XProf."
)
_CACHE = flags.DEFINE_string(
    "compilation-cache",
    "",
    "Folder of compiled programs, or off; default: JAX_COMPILATION_CACHE_DIR, else ~/.cache/jworld/compilation.",
)

#: A resumed run may have other values here: they do not change what is computed.
MAY_CHANGE = ("mesh.", "log.", "checkpoint.", "sample.", "data.threads", "data.prefetch", "model.remat")

console = rich.console.Console(highlight=False, soft_wrap=True)


@errors.exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    arguments = sys.argv if argv is None else argv
    if path := json_config(arguments):
        print(systems.recipe_from_json(pathlib.Path(path)), end="")
        return
    config = run_config.parse_flags(
        arguments,
        _CONFIG,
        description=str(__doc__),
        names=(
            "config",
            "workdir",
            "overwrite",
            "dry-run",
            "from-json",
            "profile",
            "compilation-cache",
            "coordinator",
            "num-processes",
            "process-id",
        ),
    )
    compilation.use_cache(_CACHE.value)
    config = systems.completed(config)
    system = systems.create(config)
    spec = system.batch_spec(config.global_batch)
    optimizer = optimizers.make_optimizer(
        run_config.section(optimizers.OptimizerConfig, config.optimizer, "optimizer"), steps=config.steps
    )
    # Mistakes in these are told before any device is touched.
    log_config(config)
    hub_config(config)
    profiling.parse_steps(_PROFILE.value)
    if _DRY_RUN.value:
        describe(config, system, spec, optimizer)
        return
    with startup.processes(startup.find(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)):
        run(config, system, spec, optimizer)


def json_config(arguments: Sequence[str]) -> str | None:
    """What --from-json names: it stands in the place of a recipe, without which the other flags are refused."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--from-json")
    return parser.parse_known_args(arguments[1:])[0].from_json


def run(
    config: ml_collections.ConfigDict,
    system: Any,
    spec: dict[str, records.ArraySpec],
    optimizer: optimizers.Optimizer,
) -> None:
    """Train, or go on, and show what was learnt; of several processes the first does what one can do alone."""
    console.quiet = jax.process_index() != 0
    mesh = mesh_lib.make_mesh(**config.mesh)
    mesh_lib.check_batch(mesh, config.global_batch, config.optimizer.get("accumulate", 1))
    workdir = local_folder("--workdir", _WORKDIR.value or _default_workdir())
    if not _OVERWRITE.value:
        check_workdir(config, workdir)
    if _OVERWRITE.value or not (workdir / runs.CHECKPOINTS).is_dir():
        check_initial(config)
    startup.once(system.data.prepare)
    dataset = system.data.batches("train")
    check_encoders(config, system, workdir)
    if _OVERWRITE.value:
        startup.once(lambda: shutil.rmtree(workdir, ignore_errors=True))
    if not train(config, system, optimizer, mesh, spec, dataset, workdir):
        sys.exit(errors.RESTART)
    if jax.process_count() == 1:
        show(system, workdir)
    else:
        console.print(f"next: python -m jworld.evaluate --checkpoint {workdir}")


def describe(
    config: ml_collections.ConfigDict,
    system: Any,
    spec: dict[str, records.ArraySpec],
    optimizer: optimizers.Optimizer,
) -> None:
    """What a run would be, without data, weights, or the devices of its mesh."""
    trainable = train_state.path_filter(optimizer.config.trainable)
    with nnx.use_eager_sharding(False):
        abstract = nnx.state(nnx.eval_shape(lambda: systems.training_init(system)(nnx.Rngs(0))), nnx.Param)
    trained, total = np.sum([*train_state.sizes(*nnx.split_state(abstract, trainable, ...)).values()], axis=0)
    table = rich.table.Table("", "", show_header=False)
    table.add_row("parameters", f"{total:,}")
    table.add_row("trainable", f"{trained:,}")
    table.add_row("mesh", ", ".join(f"{name} {size}" for name, size in config.mesh.items()))
    table.add_row("steps", f"{config.steps:,} of global batch {config.global_batch:,}")
    for name, entry in spec.items():
        table.add_row(f"batch {name}", f"{np.dtype(entry.dtype).name} {list(entry.shape)}")
    console.print(table)
    console.print("dry run: nothing was written; leave --dry-run out to train")


def local_folder(flag: str, name: str) -> pathlib.Path:
    """A folder that the operating system opens; addresses of buckets are refused rather than taken for names."""
    if "://" in name:
        raise errors.UserError(
            f"{flag} is {name}, expected a folder, mounted on every host: mount the bucket, as docs/pods.md shows"
        )
    return pathlib.Path(name)


def check_workdir(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """The run's folder must be new or of the same run."""
    if (workdir / run_config.FILE_NAME).is_file():
        stored = run_config.load(workdir)
        # A schedule that decays ends at `steps`: another number there would be another run.
        free = (*MAY_CHANGE, "steps") if config.optimizer.schedule.startswith("constant") else MAY_CHANGE
        checkpoints.require_same_config(workdir, stored.to_dict(), config.to_dict(), may_change=free)
    elif any(path.is_file() for path in workdir.rglob("*")):
        raise errors.UserError(f"--workdir {workdir} holds files of something else: choose an empty folder")


def check_initial(config: ml_collections.ConfigDict) -> None:
    """Weights to start from are there, before data are made for them."""
    if config.init_from and not (pathlib.Path(config.init_from) / run_config.FILE_NAME).is_file():
        raise errors.UserError(
            f"config.init_from: {config.init_from} has no {run_config.FILE_NAME}, so no weights to start from: make "
            "that run first (the recipe's first lines say which it is), or name others with --config.init_from"
        )


def check_encoders(config: ml_collections.ConfigDict, system: Any, workdir: pathlib.Path) -> None:
    """Weights that were trained with other encoders than the data's are refused."""
    for known in (workdir, pathlib.Path(config.init_from)):
        folder = known / runs.ENCODERS
        if (folder / records.MANIFEST).is_file() and not (_OVERWRITE.value and known == workdir):
            system.data.check_kept(folder)


def show(system: Any, workdir: pathlib.Path) -> None:
    """Sample the trained model, where its data set's encoders are at hand."""
    if problem := system.data.find_problem(workdir / runs.ENCODERS):
        console.print(f"no {system.sample_name}: {problem}")
    else:
        rollouts.sample_run(workdir, console)
        console.print(f"next: python -m jworld.evaluate --checkpoint {workdir}")


def _default_workdir() -> str:
    recipe, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return f"runs/{pathlib.Path(recipe).stem}" + (f"-{variant}" if variant else "")


def train(
    config: ml_collections.ConfigDict,
    system: Any,
    optimizer: optimizers.Optimizer,
    mesh: Mesh,
    spec: dict[str, records.ArraySpec],
    dataset: pipeline.BatchIterator,
    workdir: pathlib.Path,
) -> bool:
    """Train to `config.steps`, from the newest checkpoint if there is one; True unless it was asked to stop."""
    manager = checkpoints.Checkpoints(
        workdir / runs.CHECKPOINTS, interval=config.checkpoint.interval, max_to_keep=config.checkpoint.max_to_keep
    )
    graphdef, state, shardings = start(config, system, optimizer, mesh, dataset, manager)
    if jax.process_index() == 0:
        # What the other commands need, once config, data and weights are known to be good.
        run_config.save(config, workdir)
        system.data.keep(workdir / runs.ENCODERS)
    batch_shardings = {name: axes.sharding(mesh, entry.axes) for name, entry in spec.items()}
    train_step = step.make_train_step(
        graphdef,
        system.loss,
        optimizer,
        shardings=shardings,
        batch_shardings=batch_shardings,
        mesh=mesh,
        loss_takes_average=systems.loss_takes_average(system),
    )
    first = int(state.step)
    key = jax.random.key(config.seed)
    watch = watchdog.Watchdog(log_config(config).watchdog_minutes)
    log = open_log(config, system, optimizer, mesh, workdir, state=state, on_step=watch.beat)
    uploads = open_uploads(config, workdir, message=log.message)
    with uploads, watch, manager, log, preemption.Preemption() as stop, jax.set_mesh(mesh):
        for number in range(first + 1, config.steps + 1):
            with log.waiting(number):
                batch = next(dataset)
            indices = batch.pop("index")
            state, values = train_step(state, to_devices(batch, spec, batch_shardings), key)
            log.step(number, values, indices=indices)
            stopped = stop.reached(number)
            last = number == config.steps or stopped
            if last or manager.due(number):
                manager.save(state, dataset.get_state())
                uploads.saved(number, is_last=last)
            if stopped:
                manager.wait()
                log.message(f"stopped after step {number} as asked; the same command resumes there")
                return number == config.steps
    log.message(f"trained {config.steps} steps, {log.summary}; checkpoints, logs and config are in {workdir}")
    return True


def log_config(config: ml_collections.ConfigDict) -> metrics.LogConfig:
    return run_config.section(metrics.LogConfig, config.log, "log")


def hub_config(config: ml_collections.ConfigDict) -> hub.HubConfig:
    return run_config.section(hub.HubConfig, config.checkpoint.get("hub", {}), "checkpoint.hub")


def open_uploads(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, *, message: Callable[[str], None]
) -> hub.Uploads:
    """Uploads of this run, by the first process alone."""
    settings = hub_config(config) if jax.process_index() == 0 else hub.HubConfig()
    return hub.Uploads(settings, workdir / runs.CHECKPOINTS, hub.uploader(settings, workdir), message=message)


def open_log(
    config: ml_collections.ConfigDict,
    system: Any,
    optimizer: optimizers.Optimizer,
    mesh: Mesh,
    workdir: pathlib.Path,
    *,
    state: train_state.TrainState,
    on_step: Callable[[], None],
) -> metrics.ProgressLog:
    """The log of this launch; `on_step` is called when a step has ended on the device."""
    chip, batch = hardware.of_device(mesh.devices.flat[0]), config.global_batch
    work = rates.Work(
        examples=batch,
        tokens=system.step_tokens(batch),
        flops=system.step_flops(batch, train_state.sizes(state.params, state.frozen)),
        peak_flops=chip.flops * mesh.size if chip else None,
    )
    return metrics.ProgressLog(
        workdir,
        start_step=int(state.step),
        steps=config.steps,
        log=log_config(config),
        work=work,
        skip_limit=optimizer.config.skip_limit,
        profile=profiling.parse_steps(_PROFILE.value),
        on_step=on_step,
        config=config.to_dict(),
        console=console,
    )


def start(
    config: ml_collections.ConfigDict,
    system: Any,
    optimizer: optimizers.Optimizer,
    mesh: Mesh,
    dataset: pipeline.BatchIterator,
    manager: checkpoints.Checkpoints,
) -> tuple[nnx.GraphDef, train_state.TrainState, train_state.TrainState]:
    """(graph definition, state, shardings): restored, or new from `config.init_from`, or new from nothing."""
    trainable = train_state.path_filter(optimizer.config.trainable)
    init = systems.training_init(system)
    if manager.latest_step() is not None:
        graphdef, abstract, shardings = train_state.abstract_state(
            init, trainable=trainable, optimizer=optimizer, mesh=mesh
        )
        if config.checkpoint.step >= 0:
            state, position = manager.restore(abstract, config.checkpoint.step)
        else:
            state, position, problems = manager.restore_newest(abstract)
            for problem in problems:
                console.print(f"set aside: {problem.partition('; ')[0]}")
        dataset.set_state(position)
        console.print(f"resuming after step {int(state.step)}")
        return graphdef, state, shardings
    graphdef, state, shardings = train_state.create_state(
        init, trainable=trainable, optimizer=optimizer, mesh=mesh, key=jax.random.key(config.seed)
    )
    if not jax.tree.leaves(state.params):
        raise errors.UserError(
            f"config.optimizer.trainable is {optimizer.config.trainable!r}, which matches no parameter; "
            "paths look like blocks/image/query/kernel"
        )
    parts = systems.parts(system)
    if config.init_from or parts:
        params = runs.load_parts(nnx.merge_state(state.params, state.frozen), parts)
        notes = [f"the weights of the {name} are those in {folder}" for name, folder in parts.items()]
        if config.init_from:
            console.print(f"starting from the weights in {config.init_from}")
            params, more = runs.load_initial(
                pathlib.Path(config.init_from), params, copies=systems.copies(system), parts=parts
            )
            notes += more
        trained, frozen = nnx.split_state(params, trainable, ...)
        state = train_state.replace_params(state, trained, frozen)
        for note in notes:
            console.print(note)
    return graphdef, state, shardings


def to_devices(
    batch: pipeline.Batch, spec: dict[str, records.ArraySpec], shardings: dict[str, jax.sharding.NamedSharding]
) -> dict[str, jax.Array]:
    """This process's whole rows -> global arrays; with the global shape told, a device may get a part of each row."""
    return {
        name: jax.make_array_from_process_local_data(shardings[name], array, (spec[name].shape[0], *array.shape[1:]))
        for name, array in batch.items()
    }


if __name__ == "__main__":
    main()
