"""Accuracies of models on tasks: as a table, as a bar chart, and those of several evaluations side by side."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np
import rich.console
import rich.table

from jworld.utils import arguments, errors, files

#: Model -> task -> accuracy in percent.
Scores = Mapping[str, Mapping[str, float]]
MEAN = "mean"


def tasks_of(scores: Scores) -> list[str]:
    """The tasks that all models have, in the order of the first."""
    first, *others = scores.values()
    return [task for task in first if all(task in other for other in others)]


def with_mean(scores: Scores) -> dict[str, dict[str, float]]:
    """The common tasks, and their mean where they are several."""
    tasks = tasks_of(scores)
    chosen = {name: {task: own[task] for task in tasks} for name, own in scores.items()}
    if len(tasks) > 1:
        return {name: {**own, MEAN: float(np.mean(list(own.values())))} for name, own in chosen.items()}
    return chosen


def table(scores: Scores, *, chance: float | None) -> rich.table.Table:
    """Accuracy in percent, a row per task; the models after the first with their gain over it, in points."""
    scores = with_mean(scores)
    columns = [*scores, *(["chance"] if chance is not None else [])]
    drawn = rich.table.Table("accuracy in %", *columns)
    first = next(iter(scores.values()))
    for task, base in first.items():
        cells = [f"{base:.1f}"]
        cells += [f"{own[task]:.1f} ({own[task] - base:+.1f})" for own in list(scores.values())[1:]]
        drawn.add_row(task, *cells, *([f"{chance:.1f}"] if chance is not None else []))
    return drawn


def plot(scores: Scores, *, chance: float | None) -> matplotlib.figure.Figure:
    """A group of bars per task, a bar per model, and a line for guessing."""
    scores = with_mean(scores)
    tasks = list(next(iter(scores.values())))
    figure = matplotlib.figure.Figure(figsize=(max(6.0, 1.2 * len(tasks) + 2), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(scores)
    for number, (name, own) in enumerate(scores.items()):
        places = np.arange(len(tasks)) + (number - (len(scores) - 1) / 2) * width
        bars = axes.bar(places, [own[task] for task in tasks], width, label=name)
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    if chance is not None:
        axes.axhline(chance, color="tab:gray", linestyle="--", linewidth=1, label="chance")
    turned = max(map(len, tasks)) > 12
    axes.set_xticks(range(len(tasks)), tasks, rotation=30 if turned else 0, ha="right" if turned else "center")
    axes.set(ylabel="accuracy (%)", ylim=(0, 105))
    figure.legend(loc="outside upper center", ncols=min(4, len(scores) + 1))
    return figure


def read(path: pathlib.Path, label: str) -> tuple[dict[str, dict[str, float]], Any]:
    """({model: {task: accuracy}}, chance) of an evaluation.json, its models named after `label`."""
    path = path / "evaluation.json" if path.is_dir() else path
    try:
        numbers = json.loads(path.read_text())
        found = numbers["scores"]
        names = [label] if len(found) == 1 else [f"{label}, {name}" for name in found]
        return dict(zip(names, found.values(), strict=True)), numbers.get("chance")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.UserError(
            f"{path} holds no accuracies ({error!r}): give what python -m jworld.evaluate --benchmark wrote"
        ) from error


def compare(
    paths: Sequence[pathlib.Path], labels: Sequence[str], output: pathlib.Path, console: rich.console.Console
) -> dict[str, Any]:
    """Print the table, write comparison.json and comparison.png; -> what the former holds. The first is the baseline.

    Raises:
      UserError: a file holds no accuracies, they have no task in common, or there are other numbers of labels.
    """
    if len(labels) != len(paths) or len(set(labels)) != len(labels):
        raise errors.UserError(
            f"--labels: {len(labels)} given, expected a different one for each of {len(paths)} results"
        )
    scores: dict[str, dict[str, float]] = {}
    chances = []
    for path, label in zip(paths, labels, strict=True):
        own, chance = read(path, label)
        scores |= own
        chances.append(chance)
    if not tasks_of(scores):
        raise errors.UserError(f"{', '.join(map(str, paths))} have no task in common: evaluate on the same benchmark")
    chance = chances[0] if len(set(chances)) == 1 else None
    scores = with_mean(scores)
    base = next(iter(scores.values()))
    changes = {
        name: {
            task: {"points": value - base[task], "percent": _percent(base[task], value)} for task, value in own.items()
        }
        for name, own in list(scores.items())[1:]
    }
    numbers = {"results": list(map(str, paths)), "scores": scores, "changes": changes, "chance": chance}
    console.print(table(scores, chance=chance))
    try:
        output.mkdir(parents=True, exist_ok=True)
        files.write_json(output / "comparison.json", numbers)
        with files.replacing(output / "comparison.png") as temporary:
            plot(scores, chance=chance).savefig(temporary, format="png", dpi=120)
    except OSError as error:
        raise errors.UserError(f"{output} could not be written ({error}): give another --output") from error
    console.print(f"wrote {output / 'comparison.json'} and {output / 'comparison.png'}")
    return numbers


def _percent(base: float, value: float) -> float:
    return 100 * (value - base) / base if base > 0 else 0.0


def main(argv: Sequence[str]) -> None:
    parser = arguments.Parser(
        "python -m jworld.evaluate compare",
        "Print the accuracies of several evaluations side by side, and write them as comparison.json and a bar chart.",
        prog=f"{arguments.program('python -m jworld.evaluate')} compare",
    )
    add = parser.add_argument
    add("results", nargs="+", metavar="RESULT", help="evaluation.json, or its folder; the first is the baseline")
    add("--labels", nargs="+", metavar="NAME", help="names of the results (default: those of their folders)")
    add("--output", default="comparison", metavar="DIR", help="folder to write to")
    options = parser.parse(argv)
    paths = list(map(pathlib.Path, options.results))
    console = rich.console.Console(highlight=False, soft_wrap=True)
    compare(paths, options.labels or list(map(_label, paths)), pathlib.Path(options.output), console)


def _label(path: pathlib.Path) -> str:
    """The run's folder."""
    folder = path if path.is_dir() else path.parent
    return folder.resolve().parent.name if folder.name == "evaluation" else folder.resolve().name
