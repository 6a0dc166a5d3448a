"""Accuracies of models on tasks: tables, bar charts, and the comparison of several evaluations."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
import numpy as np
import rich.console
import rich.table

from jworld.utils import errors, files

#: Model -> task -> accuracy in percent.
Scores = Mapping[str, Mapping[str, float]]
MEAN = "mean"


def tasks_of(scores: Scores) -> list[str]:
    """Return the tasks that all models have, in the order of the first model."""
    first, *others = scores.values()
    return [task for task in first if all(task in other for other in others)]


def with_mean(scores: Scores) -> dict[str, dict[str, float]]:
    """Return the accuracies on common tasks, and their mean if there are several tasks."""
    tasks = tasks_of(scores)
    chosen = {name: {task: own[task] for task in tasks} for name, own in scores.items()}
    if len(tasks) > 1:
        return {name: {**own, MEAN: float(np.mean(list(own.values())))} for name, own in chosen.items()}
    return chosen


def table(scores: Scores, *, chance: float | None) -> rich.table.Table:
    """Return a table of accuracies in percent by task, with gains over the first model in percentage points."""
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
    """Draw a group of bars per task with a bar per model, and a line for chance."""
    scores = with_mean(scores)
    tasks = list(next(iter(scores.values())))
    figure = matplotlib.figure.Figure(figsize=(max(6.0, 1.2 * len(tasks) + 2), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(scores)
    for number, (name, own) in enumerate(scores.items()):
        positions = np.arange(len(tasks)) + (number - (len(scores) - 1) / 2) * width
        bars = axes.bar(positions, [own[task] for task in tasks], width, label=name)
        axes.bar_label(bars, fmt="%.0f", fontsize=8)
    if chance is not None:
        axes.axhline(chance, color="tab:gray", linestyle="--", linewidth=1, label="chance")
    rotate = max(map(len, tasks)) > 12
    axes.set_xticks(range(len(tasks)), tasks, rotation=30 if rotate else 0, ha="right" if rotate else "center")
    axes.set(ylabel="accuracy (%)", ylim=(0, 105))
    figure.legend(loc="outside upper center", ncols=min(4, len(scores) + 1))
    return figure


def read(path: pathlib.Path, label: str) -> tuple[dict[str, dict[str, float]], Any]:
    """Read ({model: {task: accuracy}}, chance) from an evaluation.json; models are named after `label`."""
    path = path / "evaluation.json" if path.is_dir() else path
    numbers = files.read_json(path, fix="give a result of python -m jworld.evaluate --benchmark")
    try:
        found = numbers["scores"]
        names = [label] if len(found) == 1 else [f"{label}, {name}" for name in found]
        if not all(isinstance(value, int | float) for tasks in found.values() for value in tasks.values()):
            raise TypeError("an accuracy is not a number")
        return dict(zip(names, found.values(), strict=True)), numbers.get("chance")
    except (KeyError, TypeError, AttributeError) as error:
        raise errors.UserError(
            f"{path} holds no accuracies ({error!r}): give a result of python -m jworld.evaluate --benchmark"
        ) from error


def compare(
    paths: Sequence[pathlib.Path], labels: Sequence[str], output: pathlib.Path, console: rich.console.Console
) -> dict[str, Any]:
    """Compare results with the first one: print a table, write comparison.json and comparison.png, return the former.

    Raises:
      UserError: a file holds no accuracies, or the results have no task in common.
    """
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
