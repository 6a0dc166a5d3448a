"""python -m jworld.evaluate --checkpoint DIR: measure a trained model on held-out data.

Prints a table and writes evaluation.json, evaluation.png and, for videos, evaluation_rollouts.png, or for answers in
text evaluation.html. The checkpoint's system defines the measures. The held-out loss is measured for all systems,
unless a benchmark is named.
python -m jworld.evaluate compare RESULT RESULT prints several evaluations side by side.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import rich.console
import rich.table
from flax import nnx

from jworld import systems
from jworld.data import pipeline, records
from jworld.encoders import choices
from jworld.evaluation import (
    accuracy,
    answer_pages,
    comparing,
    contact_sheets,
    control,
    held_out,
    leaderboard,
    measures,
    results,
)
from jworld.parallel import startup
from jworld.systems import base, recipes, runs
from jworld.utils import arguments, compilation, errors, files, hub_folders, outputs
from jworld.utils import config as run_config

# The loss is noisy: it is averaged over this many batches, always the same ones with the same noise.
LOSS_BATCHES = 8
LOSS_SEED = 0
MOST_DEGREES = 360
#: What an interrupted evaluation has measured, a JSON line per clip or question.
PARTIAL = "evaluation.partial.jsonl"
#: Answers in the table; the page has more.
SHOWN_ANSWERS = 6


def held_out_loss(run: runs.Run, batches: pipeline.BatchIterator) -> float:
    """Compute the mean training loss over `LOSS_BATCHES` batches."""

    @jax.jit
    def loss(model: nnx.Module, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        return run.system.loss(model, batch, key)[0]

    values = []
    for i in range(LOSS_BATCHES):
        batch = {name: jnp.asarray(value) for name, value in next(batches).items() if name != "index"}
        values.append(float(loss(run.model, batch, jax.random.fold_in(jax.random.key(LOSS_SEED), i))))
    return float(np.mean(values))


def evaluate(
    checkpoint: pathlib.Path,
    output: pathlib.Path,
    options: results.Options,
    *,
    step: int | None = None,
    episodes_dir: str | None = None,
    records_dir: str | None = None,
    changes: Mapping[str, str] | None = None,
    given: choices.EncoderOverrides | None = None,
    console: rich.console.Console,
) -> dict[str, Any]:
    """Measure a model, print tables and write the results.

    Args:
      checkpoint: folder of a run, or of released weights.
      output: folder for the results.
      options: amount of data and options of systems.
      step: training step of the checkpoint (default: the newest).
      episodes_dir: folder of episodes that replaces that of the config.
      records_dir: folder of records that replaces that of the config.
      changes: new values for keys of the saved config, as text by dotted key.
      given: encoders that replace those of the records.
      console: console for tables and progress bars.

    Returns:
      Contents of evaluation.json.
    """
    config = recipes.change(run_config.load(checkpoint), changes or {})
    if episodes_dir is not None:
        held_out.use_episodes(config, episodes_dir)
    if records_dir is not None:
        config.data.records = records_dir
    # Data that the user names are never made: a mistyped folder is a mistake.
    is_named = any(value is not None for value in (episodes_dir, records_dir, options.benchmark))
    is_named = is_named or any(key.startswith("data.") for key in changes or {})
    if not is_named and not (checkpoint / runs.CHECKPOINTS).is_dir():
        held_out.use_new_rooms(config)
    outputs.check_folder("--output", output)
    system = systems.create(config)
    _check_flags(system, options, episodes_dir, config.system)
    system.check_evaluation(options)
    # A published benchmark does not need the data that the weights were trained on.
    batches = None
    if options.benchmark is None:
        if not (is_named or (pathlib.Path(config.data.records) / records.MANIFEST).is_file()):
            system.data.prepare()
        system.data.check_kept(checkpoint / runs.ENCODERS)
        batches = system.data.batches("val")
    run = runs.load(checkpoint, step, config=config, given=given, teacher=True, stored=True)
    with keeping(output, console) as keep:
        chosen = dataclasses.replace(options, keep=keep)
        report = run.system.evaluate(run.model, run.encoders, run.config, chosen, console)
        numbers = {
            "checkpoint": str(checkpoint),
            "step": run.step,
            "options": {name: value for name, value in options.flags().items() if value is not None},
            **report.numbers,
            "config": run.config.to_dict(),
        }
        loss = report.numbers.get("held_out_loss")
        # The loss of a student with a critic needs the critic, which is not loaded.
        if batches is not None and loss is None and run.system.critic_loss is None:
            loss = numbers["held_out_loss"] = held_out_loss(run, batches)
            report = dataclasses.replace(report, summary=[*report.summary, ("held-out loss", f"{loss:.4f}")])
        for table in tables(report):
            console.print(table)
        for path in write(output, numbers, report):
            console.print(f"wrote {path}")
    return numbers


@contextlib.contextmanager
def keeping(output: pathlib.Path, console: rich.console.Console) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yield a function that takes measured rows; if the block fails or is interrupted, they are written to `output`."""
    rows: list[Mapping[str, Any]] = []
    try:
        yield rows.append
    except BaseException:
        path = output / PARTIAL
        if rows:
            try:
                output.mkdir(parents=True, exist_ok=True)
                with files.replacing(path) as temporary:
                    temporary.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
                console.print(f"wrote {path}: what was measured so far")
            except OSError as error:
                console.print(f"{path} could not be written ({error})", markup=False)
        raise


def _check_flags(system: base.AnySystem, options: results.Options, episodes_dir: str | None, name: str) -> None:
    """Raise `UserError` if an option was given that the system of this name does not use."""
    chosen = {f"--{name}": value for name, value in options.optional().items()} | {"--episodes": episodes_dir}
    if isinstance(system, base.TextSystem):
        # They have a default, which every system that generates videos uses.
        default = results.Options()
        chosen |= {"--windows": options.windows if options.windows != default.windows else None}
        chosen |= {"--chunks": options.chunks if options.chunks != default.chunks else None}
    unused = [flag for flag, value in chosen.items() if value is not None and flag not in system.evaluation_flags]
    if unused:
        raise errors.UserError(
            f"{', '.join(unused)}: not used for a checkpoint of the system {name!r}: leave the option out"
        )


def tables(report: results.Report) -> list[rich.table.Table]:
    """Return tables of the PSNR per chunk, or of some answers and the accuracy per task, and of the summary."""
    summary = rich.table.Table(show_header=False)
    for row in report.summary:
        summary.add_row(*row)
    if report.scores:
        shown = [answer_pages.table(report.entries, limit=SHOWN_ANSWERS)] if report.entries else []
        return [*shown, accuracy.table(report.scores, chance=report.chance), summary]
    count = max(len(values) for values in report.curves.values())
    curves = rich.table.Table("PSNR in dB", *(f"chunk {i + 1}" for i in range(count)), "mean")
    for name, values in report.curves.items():
        curves.add_row(name, *(f"{value:.2f}" for value in (*values, np.mean(values))))
    return [curves, summary]


def write(output: pathlib.Path, numbers: dict[str, Any], report: results.Report) -> list[pathlib.Path]:
    """Write numbers, plot and, if there are any, rollouts to `output`, each file complete or absent."""
    names = ["evaluation.json", "evaluation.png", *(["evaluation_rollouts.png"] if report.rollouts else [])]
    paths = [output / name for name in names]
    board = output / leaderboard.FILE
    page = [output / "evaluation.html"] if report.entries else []
    if not_finite := _find_not_finite(numbers):
        raise errors.UserError(
            f"{not_finite} is not finite, so nothing is written to {output}: the model makes no images, or the "
            "held-out data are damaged; check both"
        )
    try:
        output.mkdir(parents=True, exist_ok=True)
        files.write_json(paths[0], numbers, allow_nan=False)
        found = leaderboard.measures(report, numbers.get("held_out_loss"))
        leaderboard.write(board, found, checkpoint=numbers["checkpoint"], step=numbers["step"])
        with files.replacing(paths[1]) as temporary:
            plot(report).savefig(temporary, format="png", dpi=120)
        for path in paths[2:]:
            with files.replacing(path) as temporary:
                contact_sheets.contact_sheet(report.rollouts).save(temporary, format="png")
        for path in page:
            answer_pages.write(path, "Held-out answers", report.entries, report.summary)
    except OSError as error:
        raise errors.UserError(f"{output} could not be written ({error}): give another --output") from error
    return [*paths, *page, board]


def _find_not_finite(value: Any, name: str = "") -> str:
    """Return the dotted name of the first NaN or infinite number in a JSON value, "" without."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else name
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    return next(filter(None, (_find_not_finite(item, f"{name}.{key}".lstrip(".")) for key, item in items)), "")


def plot(report: results.Report) -> matplotlib.figure.Figure:
    """Draw the curves, and the bars next to them if there are any, or the accuracies."""
    if report.scores:
        return accuracy.plot(report.scores, chance=report.chance)
    labels = measures.IMAGES | control.CONTROL
    curves = {"PSNR (dB)": report.curves} | {labels[key]: found for key, found in report.images.items()}
    count = len(curves) + bool(report.bars)
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = matplotlib.figure.Figure(figsize=(1 + 4.5 * columns, 4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for panel, (label, found) in zip(panels, curves.items(), strict=False):
        # In one order, so that a name has one color in all panels.
        for name in report.curves:
            panel.plot(range(1, len(found[name]) + 1), found[name], marker="o", label=name)
        panel.set_xticks(range(1, max(map(len, found.values())) + 1))
        panel.set(xlabel="chunk of the rollout", ylabel=label)
    panels[0].set_title("Held-out data")
    panels[0].legend()
    if report.bars:
        panel = panels[len(curves)]
        bars = panel.bar(list(report.bars), list(report.bars.values()), color=["tab:blue", "tab:gray"])
        panel.bar_label(bars, fmt="%.1f")
        panel.margins(y=0.1)
        panel.set(ylabel="PSNR (dB)", title=report.bars_title)
    for panel in panels[count:]:
        panel.set_axis_off()
    return figure


DESCRIPTION = """Measure a trained model on held-out episodes.

Models that generate videos: PSNR of rollouts per chunk, compared with the repeated first frame and with left and right
swapped; views that come back, with and without memory retrieval; and the held-out loss. Models that answer in text:
loss and token accuracy on held-out conversations, some answers next to their references, and accuracy on questions
about held-out episodes or on a benchmark.

`compare RESULT RESULT ...` prints several evaluations side by side; see its own --help."""


def make_parser() -> arguments.Parser:
    """Return the parser of this command's options."""
    parser = arguments.Parser("python -m jworld.evaluate", DESCRIPTION)
    default = results.Options()
    add = parser.add_argument
    arguments.add_checkpoint(parser)
    add("--windows", type=arguments.positive, default=default.windows, help="rollouts along held-out episodes, at most")
    add("--chunks", type=arguments.positive, default=default.chunks, help="chunks of each rollout")
    add(
        "--revisits",
        type=arguments.positive,
        help="scripted paths of each kind, which turn away and back, or stand still, for systems with memory on the "
        f"embedded data (default: {results.REVISITS} if the system has such)",
    )
    add(
        "--angles",
        type=arguments.positive,
        nargs="+",
        metavar="DEGREES",
        help="turns of the paths that come back; 360 turns all the way round "
        f"(default: {' '.join(map(str, results.ANGLES))})",
    )
    add(
        "--motion",
        metavar="FILE",
        help="network that reads motion from videos, by scripts/train_motion.py (default: the shipped one of the "
        "embedded source of the data)",
    )
    add("--seed", type=arguments.seed, default=default.seed, help="random seed for the noise")
    add("--output", metavar="DIR", help="folder to write to (default: evaluation in the checkpoint's folder)")
    add("--episodes", metavar="DIR", help="recorded episodes (default: those of the run's config)")
    add("--records", metavar="DIR", help="records of the episodes (default: those of the run's config)")
    arguments.add_changes(parser, default="as saved with the checkpoint")
    add = parser.add_argument_group("models that answer in text").add_argument
    add(
        "--benchmark",
        metavar="NAME",
        help="questions, blink, spatial_rgpt or vsr (default: the held-out conversations of the run)",
    )
    add("--data", metavar="PATH", help="files of the benchmark (default: none)")
    add("--images", metavar="DIR", help="images of the benchmark, if they are separate files (default: none)")
    add("--split", help="split of BLINK; the answers of test are not public (default: val)")
    add(
        "--limit",
        type=arguments.positive,
        help="largest number of questions, for BLINK per task (default: all; of held-out conversations 16)",
    )
    add("--batch", type=arguments.positive, help="questions that are answered at once (default: 16)")
    add(
        "--scoring",
        metavar="NAME",
        help="how answers are read: sound; original, as the published scripts read BLINK and VSR; likelihood, the most "
        "likely option of multiple-choice questions (default: original for models with compat 'original', else sound)",
    )
    choices.add_arguments(parser, defaults=dict.fromkeys(choices.FLAGS, "that of the records"))
    return parser


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] in (["compare"], ["--compare"]):
        comparing.main(argv[1:])
        return
    options = make_parser().parse(argv)
    if max(options.angles or (0,)) > MOST_DEGREES:
        raise errors.UserError(f"--angles: found {max(options.angles)}, expected at most {MOST_DEGREES} degrees")
    startup.require_alone("python -m jworld.evaluate")
    compilation.use_cache()
    given, checkpoint = options.checkpoint, hub_folders.find(options.checkpoint)
    # Nothing is written into the folder of weights that come with jworld.
    folder = checkpoint if checkpoint == given else pathlib.Path(given.name)
    evaluate(
        checkpoint,
        pathlib.Path(options.output) if options.output else folder / "evaluation",
        results.Options(**{name: getattr(options, name) for name in results.Options().flags()}),
        step=options.step,
        episodes_dir=options.episodes,
        records_dir=options.records,
        changes=options.changes,
        given=choices.EncoderOverrides.from_arguments(options),
        console=rich.console.Console(highlight=False, soft_wrap=True),
    )


if __name__ == "__main__":
    main()
