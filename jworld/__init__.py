"""jworld: interactive video world models in JAX and Flax NNX.

`load` opens a trained model; everything else is reached through the commands.
"""

import pathlib
from typing import TYPE_CHECKING

# The launch time first, before anything slow is imported.
from jworld.utils import launch_time, tpu_environment  # noqa: F401

if TYPE_CHECKING:
    from jworld.systems.runs import Run

__all__ = ["load"]

tpu_environment.settle()


def load(path: str | pathlib.Path, step: int | None = None) -> "Run":
    """Open a trained model on one device.

    Args:
      path: folder of a run, or of released or imported weights.
      step: checkpoint of the run (default: the newest).

    Returns:
      A `jworld.systems.runs.Run` with `generate`, `session` and `answer`.

    Raises:
      UserError: something is missing or damaged.
    """
    # Imported here, so that commands which need no model start fast.
    from jworld.systems import runs

    return runs.load(pathlib.Path(path), step)


def __getattr__(name: str) -> str:
    """Read `__version__` from the installed package's metadata, which pyproject.toml is the source of."""
    if name == "__version__":
        from importlib import metadata

        return metadata.version("jworld")
    raise AttributeError(f"module 'jworld' has no attribute {name!r}")
