"""Evaluation of one model in several modes, such as with and without its world, on a benchmark."""

import pathlib
from collections.abc import Mapping

import rich.console

from jworld.data.conversations import dataset
from jworld.evaluation import results
from jworld.systems.theworld.evaluation import benchmarks, blink, questions, spatial_bench, vsr
from jworld.utils import errors

QUESTIONS, BLINK, SPATIAL, VSR = "questions", "blink", "spatial_rgpt", "vsr"
NAMES = (QUESTIONS, BLINK, SPATIAL, VSR)
#: Questions per batch.
BATCH = 16


def load(data: dataset.Conversations, options: results.Options) -> benchmarks.Benchmark:
    """Load the benchmark that the options name.

    Raises:
      UserError: there is no such benchmark, or its data are absent.
    """
    name, limit = options.benchmark or QUESTIONS, options.limit or 0
    if name not in NAMES:
        raise errors.UserError(f"--benchmark is {name!r}, expected one of {', '.join(NAMES)}")
    if name == QUESTIONS:
        if data.set.format != "questions":
            raise errors.UserError(
                f"--benchmark: the run was trained on {data.set.format!r}, not on questions about episodes: choose one "
                f"of {', '.join(NAMES[1:])}, with --data"
            )
        return questions.load(data.source("val"), limit=limit)
    if options.data is None:
        raise errors.UserError(f"--data is missing: give the data of --benchmark {name} (docs/theworld.md)")
    path = pathlib.Path(options.data)
    if not path.exists():
        raise errors.UserError(f"--data: {path} is absent: correct it")
    if name == BLINK:
        return blink.load(path, split=options.split or "val", limit=limit, images=data.clip.images)
    if name == SPATIAL:
        return spatial_bench.load(path, options.images or "", limit=limit)
    if options.images is None:
        raise errors.UserError("--images is missing: give the folder of VSR's images")
    return vsr.load(path, pathlib.Path(options.images), limit=limit)


def evaluate(
    answers: Mapping[str, benchmarks.Answer],
    data: dataset.Conversations,
    options: results.Options,
    console: rich.console.Console,
) -> results.Report:
    """Run a benchmark with each of `answers`, by name of the mode."""
    benchmark = load(data, options)
    batch = options.batch or BATCH
    outcomes = {
        name: benchmarks.run(benchmark, answer, batch=batch, console=console, title=name)
        for name, answer in answers.items()
    }
    skipped = next(iter(outcomes.values())).skipped
    if len(skipped) == len(benchmark.examples):
        raise errors.UserError(f"no image of {benchmark.name} can be read; the first: {next(iter(skipped.values()))}")
    summary = [("benchmark", benchmark.name), ("questions", str(len(benchmark.examples) - len(skipped)))]
    if skipped:
        name, reason = next(iter(skipped.items()))
        summary.append(("left out", f"{len(skipped)}, the first is {name}: {reason}"))
    scores = {
        name: {task: numbers["accuracy"] for task, numbers in outcome.tasks.items()}
        for name, outcome in outcomes.items()
    }
    numbers = {
        "benchmark": benchmark.name,
        "scores": scores,
        "chance": benchmark.chance,
        "tasks": {name: outcome.tasks for name, outcome in outcomes.items()},
        "left_out": skipped,
        "answers": {name: outcome.rows for name, outcome in outcomes.items()},
    }
    return results.Report(numbers=numbers, summary=summary, scores=scores, chance=benchmark.chance)
