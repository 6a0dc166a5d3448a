"""The command `python -m jworld.evaluate compare`: several evaluations side by side."""

import pathlib
from collections.abc import Sequence

import rich.console

from jworld.evaluation import accuracy, leaderboard
from jworld.utils import arguments, errors, files, outputs

DESCRIPTION = """Print several evaluations side by side: accuracies per task, with a bar chart, or all measures of
videos. Writes comparison.json. The best values are bold."""


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    parser = arguments.Parser(
        "python -m jworld.evaluate compare",
        DESCRIPTION,
        prog=f"{arguments.program('python -m jworld.evaluate')} compare",
    )
    add = parser.add_argument
    add("results", nargs="+", metavar="RESULT", help="folder of an evaluation, or its JSON; the first is the baseline")
    add("--labels", nargs="+", metavar="NAME", help="names of the results (default: those of their folders)")
    add("--output", default="comparison", metavar="DIR", help="folder to write to")
    options = parser.parse(argv)
    outputs.check_folder("--output", pathlib.Path(options.output))
    paths = list(map(pathlib.Path, options.results))
    labels = options.labels or list(map(_label, paths))
    if len(labels) != len(paths) or len(set(labels)) != len(labels):
        raise errors.UserError(
            f"--labels: {len(labels)} given, expected a different one for each of {len(paths)} results"
        )
    console = rich.console.Console(highlight=False, soft_wrap=True)
    kind = accuracy if _has_scores(paths[0]) else leaderboard
    kind.compare(paths, labels, pathlib.Path(options.output), console)


def _has_scores(path: pathlib.Path) -> bool:
    """Return whether a result has accuracies; a `UserError` that names the file if it is not a result."""
    path = path / "evaluation.json" if path.is_dir() else path
    return "scores" in files.read_json(path, fix="give the folder that python -m jworld.evaluate wrote")


def _label(path: pathlib.Path) -> str:
    """Return the name of the run's folder."""
    folder = path if path.is_dir() else path.parent
    return folder.resolve().parent.name if folder.name == "evaluation" else folder.resolve().name
