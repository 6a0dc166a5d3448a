"""One flat table of measures per evaluation, leaderboard.json, and several of them side by side.

{"format", "version", "checkpoint", "step", "measures": {name: {"value", "better"}}}; `better` is "higher", "lower", or
"one" for ratios to the truth.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import rich.console
import rich.table

from jworld.evaluation import held_out, results
from jworld.utils import errors, files

FILE = "leaderboard.json"
FORMAT, VERSION = "jworld-leaderboard", 1
#: Which values of a curve are better; all that are not named here: higher.
BETTER = {"edges": "one", "seams": "one", "colors": "lower", "turns": "lower", "steps": "lower", "frechet": "lower"}


@dataclasses.dataclass(frozen=True)
class Measure:
    """A value, and whether "higher", "lower" or close to "one" is better."""

    value: float
    better: str

    def error(self) -> float:
        """Return a number that is smaller for better values."""
        return {"higher": -self.value, "lower": self.value, "one": abs(self.value - 1)}[self.better]


def measures(report: results.Report, loss: float | None) -> dict[str, Measure]:
    """Return the values of the model in a report, by name, in the order in which they are shown."""
    found: dict[str, Measure] = {}
    for key, values in {"psnr": report.curves, **report.images}.items():
        for i, value in enumerate(values.get(held_out.MODEL, [])):
            found[f"{key}, chunk {i + 1}"] = Measure(value, BETTER.get(key, "higher"))
    found |= {" ".join(name.split()): Measure(value, "higher") for name, value in report.bars.items()}
    for way, tasks in report.scores.items():
        found |= {f"{way}, {task}": Measure(value, "higher") for task, value in tasks.items()}
    if loss is not None:
        found["held-out loss"] = Measure(loss, "lower")
    return found


def write(path: pathlib.Path, found: Mapping[str, Measure], *, checkpoint: str, step: int) -> None:
    """Write the measures of a checkpoint."""
    content = {"format": FORMAT, "version": VERSION, "checkpoint": checkpoint, "step": step}
    content |= {"measures": {name: dataclasses.asdict(measure) for name, measure in found.items()}}
    files.write_json(path, content, allow_nan=False)


def read(path: pathlib.Path) -> dict[str, Measure]:
    """Read the measures of a file of `write`, or of the folder that holds one.

    Raises:
      UserError: there is none.
    """
    path = path / FILE if path.is_dir() else path
    content: dict[str, Any] = files.read_json(path, fix="give the folder that python -m jworld.evaluate wrote")
    try:
        if (content["format"], content["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {content['format']!r} {content['version']!r}")
        found = {name: Measure(float(entry["value"]), entry["better"]) for name, entry in content["measures"].items()}
        for measure in found.values():
            measure.error()
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.UserError(
            f"{path} holds no measures ({error!r}): give the folder that python -m jworld.evaluate wrote"
        ) from error


def table(boards: Mapping[str, Mapping[str, Measure]]) -> rich.table.Table:
    """Return a table with one row per measure that at least two results have; the best values are bold.

    Raises:
      UserError: the results have no measure in common.
    """
    names = dict.fromkeys(name for board in boards.values() for name in board)
    shared = [name for name in names if sum(name in board for board in boards.values()) > 1]
    if not shared:
        raise errors.UserError(f"{', '.join(boards)} have no measure in common: evaluate models of one kind")
    made = rich.table.Table("measure", *boards, "better")
    for name in shared:
        row = [board.get(name) for board in boards.values()]
        best = min(measure.error() for measure in row if measure is not None)
        cells = ["" if measure is None else _cell(measure, bold=measure.error() == best) for measure in row]
        made.add_row(name, *cells, next(measure.better for measure in row if measure is not None))
    return made


def compare(
    paths: Sequence[pathlib.Path], labels: Sequence[str], output: pathlib.Path, console: rich.console.Console
) -> None:
    """Print several results side by side and write them as comparison.json.

    Raises:
      UserError: a folder holds no result, or they have no measure in common.
    """
    boards = {label: read(path) for path, label in zip(paths, labels, strict=True)}
    console.print(table(boards))
    content = {label: {name: measure.value for name, measure in board.items()} for label, board in boards.items()}
    try:
        output.mkdir(parents=True, exist_ok=True)
        files.write_json(output / "comparison.json", {"results": list(map(str, paths)), "measures": content})
    except OSError as error:
        raise errors.UserError(f"{output} could not be written ({error}): give another --output") from error
    console.print(f"wrote {output / 'comparison.json'}")


def _cell(measure: Measure, *, bold: bool) -> str:
    text = f"{measure.value:.4g}"
    return f"[bold]{text}[/bold]" if bold else text
