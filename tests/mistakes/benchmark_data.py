"""The data of benchmarks, as `jworld.evaluate --benchmark` reads them, without a model in front."""

import types
from collections.abc import Sequence
from typing import Any

from jworld.evaluation import results
from jworld.systems.theworld.evaluation import report
from jworld.utils import arguments, errors


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Load a benchmark, and all images that its questions show."""
    parser = arguments.Parser("python tests/mistakes/benchmark_data.py")
    for name in ("benchmark", "data", "images", "split"):
        parser.add_argument(f"--{name}")
    options = results.Options(**vars(parser.parse(argv)))
    data: Any = types.SimpleNamespace(
        set=types.SimpleNamespace(format="questions"), clip=types.SimpleNamespace(images=4)
    )
    found = report.load(data, options, max_tokens=4, scoring=report.SOUND)
    for example in found.examples:
        try:
            example.load()
        except ValueError as error:
            raise errors.UserError(str(error)) from error
