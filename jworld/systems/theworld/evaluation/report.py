"""Evaluation of one model in several modes, such as with and without its world, on a benchmark."""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np
import rich.console

from jworld.data.conversations import dataset
from jworld.evaluation import answer_pages, results
from jworld.systems.theworld.evaluation import benchmarks, blink, held_out, questions, spatial_bench, vsr
from jworld.utils import errors, indices

QUESTIONS, BLINK, SPATIAL, VSR = "questions", "blink", "spatial_rgpt", "vsr"
NAMES = (QUESTIONS, BLINK, SPATIAL, VSR)
#: How answers are read.
SOUND, ORIGINAL, LIKELIHOOD = "sound", "original", "likelihood"
SCORINGS = (SOUND, ORIGINAL, LIKELIHOOD)
#: Benchmarks that an option is for.
USED = {"--data": (BLINK, SPATIAL, VSR), "--images": (SPATIAL, VSR), "--split": (BLINK,)}
#: Questions per batch, and answers that are shown with their images.
BATCH, SHOWN = 16, 16


def check(data: dataset.Conversations, options: results.Options) -> None:
    """Raise a `UserError` if there is no such benchmark or scoring, or an option is missing or has no effect.

    No data are read.
    """
    name = options.benchmark
    if options.scoring is not None and options.scoring not in SCORINGS:
        raise errors.UserError(f"--scoring is {options.scoring!r}, expected one of {', '.join(SCORINGS)}")
    if name is not None and name not in NAMES:
        raise errors.UserError(f"--benchmark is {name!r}, expected one of {', '.join(NAMES)}")
    if name == QUESTIONS and data.set.format != "questions":
        raise errors.UserError(
            f"--benchmark: the run was trained on {data.set.format!r}, not on questions about episodes: choose one "
            f"of {', '.join(NAMES[1:])} with --data, or leave it out for the held-out conversations"
        )
    values = {"--data": options.data, "--images": options.images, "--split": options.split}
    if unused := [flag for flag, value in values.items() if value is not None and name not in USED[flag]]:
        raise errors.UserError(
            f"{unused[0]} has no effect with {f'--benchmark {name}' if name else 'held-out conversations'}: leave it "
            f"out, or choose --benchmark {' or '.join(USED[unused[0]])}"
        )
    if name in USED["--data"] and options.data is None:
        raise errors.UserError(f"--data is missing: give the data of --benchmark {name} (docs/theworld.md)")
    if options.data is not None and not pathlib.Path(options.data).exists():
        raise errors.UserError(f"--data: {options.data} is absent: correct it")
    if name == VSR and options.images is None:
        raise errors.UserError("--images is missing: give the folder of VSR's images")
    if options.images is not None and not pathlib.Path(options.images).is_dir():
        raise errors.UserError(f"--images: {options.images} is not a folder: correct it")
    if options.split is not None and not options.split.isidentifier():
        raise errors.UserError(f"--split is {options.split!r}, expected a name such as val: correct it")


def load(
    data: dataset.Conversations, options: results.Options, *, max_tokens: int, scoring: str = SOUND
) -> benchmarks.Benchmark:
    """Load the benchmark that the options name, or the held-out conversations with answers of `max_tokens`.

    Raises:
      UserError: there is no such benchmark, or its data are absent.
    """
    check(data, options)
    name, limit, original = options.benchmark or QUESTIONS, options.limit or 0, scoring == ORIGINAL
    if options.benchmark is None and data.set.format != "questions":
        return held_out.load(data.source("val"), limit=limit, max_tokens=max_tokens)
    if name == QUESTIONS:
        return questions.load(data.source("val"), limit=limit)
    path = pathlib.Path(options.data or "")
    if name == BLINK:
        split, images = options.split or "val", data.clip.images
        return blink.load(path, split=split, limit=limit, images=images, original=original)
    if name == SPATIAL:
        return spatial_bench.load(path, options.images or "", limit=limit)
    return vsr.load(path, pathlib.Path(options.images or ""), limit=limit, original=original)


def evaluate(
    answers: Mapping[str, benchmarks.Answer],
    data: dataset.Conversations,
    options: results.Options,
    console: rich.console.Console,
    *,
    max_tokens: int,
    scoring: str = SOUND,
) -> results.Report:
    """Run a benchmark with each of `answers`, by name of the mode.

    `scoring` is how answers are read if `options` do not say it.

    Raises:
      UserError: the benchmark or the scoring is unknown, its data are absent, or no image can be read.
    """
    scoring = options.scoring or scoring
    benchmark = load(data, options, max_tokens=max_tokens, scoring=scoring)
    batch, by_likelihood = options.batch or BATCH, scoring == LIKELIHOOD
    outcomes = {
        name: benchmarks.run(
            benchmark,
            answer,
            batch=batch,
            console=console,
            title=name,
            by_likelihood=by_likelihood,
            keep=options.keep,
        )
        for name, answer in answers.items()
    }
    skipped = next(iter(outcomes.values())).skipped
    if len(skipped) == len(benchmark.examples):
        raise errors.UserError(f"no image of {benchmark.name} can be read; the first: {next(iter(skipped.values()))}")
    summary = [("benchmark", benchmark.name), ("questions", str(len(benchmark.examples) - len(skipped)))]
    if skipped:
        name, reason = next(iter(skipped.items()))
        summary.append(("left out", f"{len(skipped)}, the first is {name}: {reason}"))
    summary += _reading(scoring, outcomes)
    scores = {
        name: {task: numbers["accuracy"] for task, numbers in outcome.tasks.items()}
        for name, outcome in outcomes.items()
    }
    numbers = {
        "benchmark": benchmark.name,
        "scoring": scoring,
        "scores": scores,
        "chance": benchmark.chance,
        "tasks": {name: outcome.tasks for name, outcome in outcomes.items()},
        "left_out": skipped,
        "answers": {name: outcome.rows for name, outcome in outcomes.items()},
    }
    return results.Report(
        numbers=numbers,
        summary=summary,
        scores=scores,
        chance=benchmark.chance,
        entries=_entries(benchmark, outcomes),
    )


def _reading(scoring: str, outcomes: Mapping[str, benchmarks.Outcome]) -> list[tuple[str, str]]:
    """Return how answers were read, and how many answers and truths could not be."""
    rows = [("scoring", scoring)]
    counted = {name: [row for row in own.rows if row["score"] is not None] for name, own in outcomes.items()}
    unparsed = {name: sum(row["parsed"] is None for row in own) for name, own in counted.items()}
    shown = ", ".join(f"{name} {count} of {len(counted[name])}" for name, count in unparsed.items())
    rows.append(("unparsed answers", shown))
    first = next(iter(outcomes.values()))
    if unreadable := [row for row in first.rows if row["score"] is None]:
        example = f"{unreadable[0]['name']}: {unreadable[0]['truth']}"
        rows.append(("truths that cannot be read", f"{len(unreadable)}, not scored; the first is {example}"))
    return rows


def _entries(benchmark: benchmarks.Benchmark, outcomes: Mapping[str, benchmarks.Outcome]) -> list[answer_pages.Entry]:
    """Return some answers of every mode next to their images."""
    examples = {example.name: example for example in benchmark.examples}
    rows = {name: {row["name"]: row for row in outcome.rows} for name, outcome in outcomes.items()}
    names = list(next(iter(rows.values())))
    entries = []
    for number in indices.evenly(len(names), min(SHOWN, len(names))):
        example = examples[names[number]]
        own = {mode: by_name[example.name] for mode, by_name in rows.items()}
        entries.append(
            answer_pages.Entry(
                question=example.prompt,
                answers={mode: row["prediction"] for mode, row in own.items()},
                truth=example.reference or example.truth,
                images=list(map(np.asarray, example.load())),
                right={mode: row["score"] == 1.0 for mode, row in own.items() if row["score"] is not None},
            )
        )
    return entries


def with_losses(report: results.Report, losses: Mapping[str, Mapping[str, float]]) -> results.Report:
    """Add held-out losses and token accuracies by name of the mode; those of the first mode are the model's."""
    summary = [*report.summary]
    for name, own in losses.items():
        suffix = "" if len(losses) == 1 else f", {name}"
        summary.append((f"held-out loss{suffix}", f"{own['loss']:.4f}"))
        summary.append((f"held-out token accuracy{suffix}", f"{own['token_accuracy']:.1f} %"))
    first = next(iter(losses.values()))
    measured = {"held_out_loss": first["loss"], "held_out": {name: dict(own) for name, own in losses.items()}}
    return dataclasses.replace(report, numbers={**report.numbers, **measured}, summary=summary)
