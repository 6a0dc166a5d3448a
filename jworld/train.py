"""python -m jworld.train --config=configs/ar_mem.py

Trains a recipe: makes its embedded data if absent, trains or resumes, and samples the trained model at the end.
"""

import argparse
import contextlib
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import rich.console

from jworld import systems
from jworld.data import pipeline
from jworld.evaluation import samples
from jworld.parallel import axes, startup
from jworld.systems import dry_run, periodic, recipes, run_facts, runs, training_job, workdirs
from jworld.systems.training_job import TrainingJob
from jworld.training import checkpoints, emergency, hub, metrics, preemption, profiling, rates, step, watchdog
from jworld.training import state as train_state
from jworld.utils import arguments, compilation, errors, hardware, interrupts
from jworld.utils import config as run_config

DESCRIPTION = """Train a model as a recipe describes, or resume the run in its folder.

Makes the recipe's embedded data if absent, trains, and samples the trained model at the end. The same command again
resumes an interrupted run."""

console = rich.console.Console(highlight=False, soft_wrap=True)


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    options = parse_arguments(argv)
    if options.from_json is not None:
        print(systems.recipe_from_json(options.from_json), end="")
        return
    # Mistakes in the config are reported before any device is touched.
    config = recipes.from_options(options)
    compilation.use_cache(options.compilation_cache)
    workdir = local_folder("--workdir", options.workdir or default_workdir(options.config))
    profile = profiling.parse_steps(options.profile)
    job = TrainingJob.from_config(config, workdir, profile=profile, accept_data=options.accept_data)
    if options.dry_run:
        job, problem = dry_run.counted(job, overwrite=options.overwrite)
        console.print(dry_run.describe(job))
        dry_run.check(job, overwrite=options.overwrite)
        if problem:
            console.print(f"data: {problem}", markup=False)
        console.print("dry run: nothing was written; leave --dry-run out to train")
        return
    process = startup.find(options.coordinator, options.num_processes, options.process_id)
    with startup.processes(process, run_facts.of_job(job, overwrite=options.overwrite)):
        run(job, overwrite=options.overwrite)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments.Parser("python -m jworld.train", DESCRIPTION)
    arguments.add_recipe(parser)
    add = parser.add_argument
    add("--workdir", metavar="DIR", help="folder of the run (default: runs/RECIPE-VARIANT)")
    add(
        "--overwrite",
        action="store_true",
        help="delete what an earlier run wrote into the workdir, and start at step 0; a folder that holds anything "
        "else is refused",
    )
    add(
        "--accept-data",
        action="store_true",
        help="resume although config.data.records is another data set than that of the checkpoint",
    )
    add("--dry-run", action="store_true", help="print parameters, batch and mesh, check what needs no data, and exit")
    add(
        "--from-json",
        type=pathlib.Path,
        metavar="FILE",
        help="print the recipe for a JSON training config of an original system, and exit (default: none)",
    )
    add(
        "--profile",
        default="",
        metavar="FIRST:LAST",
        help="steps to trace, such as 10:15; the trace is written to DIR/profile for XProf",
    )
    add(
        "--compilation-cache",
        default="",
        metavar="DIR",
        help="folder of compiled programs, or off (default: JAX_COMPILATION_CACHE_DIR or ~/.cache/jworld/compilation)",
    )
    group = parser.add_argument_group("multi-process runs").add_argument
    detected = "detected on TPU pods, GKE and SLURM"
    group("--coordinator", metavar="HOST:PORT", help=f"address of process 0 (default: {detected})")
    group("--num-processes", type=arguments.positive, help=f"number of processes (default: {detected})")
    group("--process-id", type=int, help=f"rank of this process, from 0 (default: {detected})")
    for option in ("--config", "--workdir", "--overwrite", "--dry-run", "--profile"):
        parser.not_with(option, "--from-json")
    # A run from step 0 has no checkpoint whose data could differ.
    parser.not_with("--accept-data", "--overwrite")
    return parser.parse(argv)


def local_folder(flag: str, name: str) -> pathlib.Path:
    """Return `name` as a path; a `UserError` if it is the address of a bucket, which would become a folder name."""
    if "://" in name:
        raise errors.UserError(
            f"{flag} is {name}, expected a folder, mounted on every host: mount the bucket, as docs/pods.md shows"
        )
    return pathlib.Path(name)


def default_workdir(config: str) -> str:
    """Return the folder of a run of "path/recipe.py:variant"."""
    recipe, _, variant = config.partition(":")
    return f"runs/{pathlib.Path(recipe).stem}" + (f"-{variant}" if variant else "")


def run(job: TrainingJob, *, overwrite: bool) -> None:
    """Train or resume, then sample the trained model.

    In multi-process runs only process 0 prints, writes shared files and prepares data, and nothing is sampled.
    """
    console.quiet = jax.process_index() != 0
    job.mesh  # noqa: B018 - report a mesh that does not fit before making data
    training_job.check_folders(job, overwrite=overwrite)
    with workdirs.locked(job.workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        _run(job, overwrite=overwrite)


def _run(job: TrainingJob, *, overwrite: bool) -> None:
    abandoned = emergency.run_of(job.workdir) if overwrite else ""
    startup.once(job.system.data.prepare)
    dataset = job.system.data.batches("train")
    startup.agree(run_facts.of_data(dataset))
    job = job.counted(dataset.records)
    training_job.check_encoders(job, overwrite=overwrite)
    if overwrite:
        startup.once(lambda: workdirs.clear(job.workdir))
        emergency.forget(job.emergency, abandoned)
    is_finished = train(job, dataset)
    if interrupts.seen():
        sys.exit(interrupts.INTERRUPTED)
    if not is_finished:
        sys.exit(errors.RESTART)
    if jax.process_count() > 1 or show(job):
        console.print(f"next: python -m jworld.evaluate --checkpoint {job.workdir}")


def train(job: TrainingJob, dataset: pipeline.BatchIterator) -> bool:
    """Train to `config.steps`, from the newest checkpoint if there is one; return False if stopped before."""
    config = job.config
    manager = checkpoints.Checkpoints(
        job.workdir / runs.CHECKPOINTS, interval=config.checkpoint.interval, max_to_keep=config.checkpoint.max_to_keep
    )
    memory = training_job.open_emergency(job, message=console.print)
    graphdef, state, shardings = training_job.start(job, dataset, manager, memory=memory, message=console.print)
    if int(state.step) < config.steps:
        manager.check_space(state)
    if jax.process_index() == 0:
        # Other commands need these files; config, data and weights are valid at this point.
        run_config.save(config, job.workdir)
        job.system.data.keep(job.workdir / runs.ENCODERS)
        memory.register()
    batch_shardings = {name: axes.sharding(job.mesh, entry.axes) for name, entry in job.spec.items()}
    train_step = step.make_train_step(
        graphdef,
        job.system.loss,
        job.optimizer,
        shardings=shardings,
        batch_shardings=batch_shardings,
        mesh=job.mesh,
        loss_takes_ema=job.system.loss_takes_ema,
        critic_loss=job.system.critic_loss,
    )
    key = jax.random.key(config.seed)
    watch = watchdog.Watchdog(job.log.watchdog_minutes)
    log = open_log(job, state, on_step=watch.beat)
    between = periodic.Periodic(job, graphdef, shardings, batch_shardings, log=log, watch=watch)
    uploads = open_uploads(job, message=log.message)
    with memory, uploads, watch, manager, log, preemption.Preemption() as stop, jax.set_mesh(job.mesh):
        for number in range(first := int(state.step) + 1, config.steps + 1):
            with log.waiting(number):
                batch = next(dataset)
            indices = batch.pop("index")
            inputs = training_job.to_devices(batch, job.spec, batch_shardings)
            if number == first:
                startup.compile_together(train_step, state, inputs, key)
            state, values = train_step(state, inputs, key)
            log.step(number, values, indices=indices)
            stopped = stop.reached(number)
            last = number == config.steps or stopped
            if last or manager.due(number):
                manager.save(state, dataset.get_state())
                uploads.saved(number, is_last=last)
            if memory.due(number) and not last:
                memory.save(state, dataset.get_state())
            if stopped:
                manager.wait()
                log.message(f"stopped after step {number} on request; the same command resumes there")
                return bool(number == config.steps)
            between.after(number, state)
    log.message(f"trained {config.steps} steps, {log.summary}; checkpoints, logs and config are in {job.workdir}")
    return True


def open_uploads(job: TrainingJob, *, message: Callable[[str], None]) -> hub.Uploads:
    """Open the uploads of this run; only process 0 uploads."""
    settings = job.hub if jax.process_index() == 0 else hub.HubConfig()

    def export(step: int, folder: pathlib.Path) -> dict[str, Any] | None:
        """Export in another process, which has its own memory and leaves the devices alone."""
        command = [sys.executable, "-m", "jworld", "convert", "export", str(job.workdir), "--step", str(step)]
        ended = subprocess.run(
            [*command, "--layout", "library", "--output", str(folder)],
            capture_output=True,
            text=True,
            check=False,
            # Ctrl-C, which a terminal sends to all processes of a group, saves the run; the save is uploaded.
            process_group=0,
        )
        if ended.returncode:
            message(f"the upload of step {step} has no export: {ended.stderr.strip()[-500:]}")
            return None
        exported: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return exported

    upload = hub.uploader(settings, job.workdir, export)
    return hub.Uploads(settings, job.workdir / runs.CHECKPOINTS, upload, message=message)


def open_log(job: TrainingJob, state: train_state.TrainState, *, on_step: Callable[[], None]) -> metrics.ProgressLog:
    """Open the log of this launch; `on_step` is called when a step has ended on the device."""
    chip, batch = hardware.of_device(job.mesh.devices.flat[0]), job.config.global_batch
    work = rates.Work(
        examples=batch,
        tokens=job.system.step_tokens(batch),
        flops=job.system.step_flops(batch, train_state.sizes(state.params, state.others)),
        peak_flops=chip.flops * job.mesh.size if chip else None,
    )
    return metrics.ProgressLog(
        job.workdir,
        start_step=int(state.step),
        steps=job.config.steps,
        log=job.log,
        work=work,
        skip_limit=job.optimizer.config.skip_limit,
        profile=job.profile,
        on_step=on_step,
        config=job.config.to_dict(),
        console=console,
    )


def show(job: TrainingJob) -> bool:
    """Sample the newest checkpoint, and write samples/NAME.mp4 and .png, or NAME.json for answers in text.

    Return whether the held-out sample was possible; if any sample was not, the reason is printed.
    """
    made_any = False
    if problem := job.system.data.find_problem(job.workdir / runs.ENCODERS):
        console.print(f"no {job.system.sample_name}: {problem}", markup=False)
        return False
    try:
        run = runs.load(job.workdir, stored=True)
        for name, made in periodic.make_samples(run.system, run.model, run.encoders, run.config, job.samples):
            for line in samples.write(made, job.workdir / runs.SAMPLES, name, fps=run.encoders.fps):
                console.print(line, markup=False)
            made_any = True
    except errors.UserError as error:
        # The run itself ended well.
        console.print(f"no {'further samples' if made_any else job.system.sample_name}: {error}", markup=False)
    return made_any


if __name__ == "__main__":
    main()
