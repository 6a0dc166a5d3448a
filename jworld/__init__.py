"""jworld: interactive video world models in JAX and Flax NNX.

`load` opens a trained model; everything else is reached through the commands.
"""

import pathlib
from typing import TYPE_CHECKING

# The launch time first, before anything slow is imported.
from jworld.utils import interrupts, launch_time, tpu_environment  # noqa: F401

if TYPE_CHECKING:
    from jworld.systems.runs import Run

__all__ = ["load"]

if interrupts.is_command():
    interrupts.install()
tpu_environment.settle()


def load(
    path: str | pathlib.Path,
    step: int | None = None,
    *,
    size: tuple[int, int] | str | None = None,
    aspect: tuple[int, int] | None = None,
    fps: float | None = None,
    guidance: float | None = None,
    steps: int | None = None,
    quantize: str | None = None,
) -> "Run":
    """Open a trained model on one device.

    Args:
      path: folder of a run, or of released or imported weights.
      step: checkpoint of the run (default: the newest).
      size: width and height of videos in pixels, or a published set of sizes such as "480p" (default: as saved).
      aspect: ratio of width and height, such as (16, 9), which chooses a size.
      fps: frame rate of videos, in frames per second (default: as saved).
      guidance: scale of classifier-free guidance, in the convention of the system (default: as saved).
      steps: denoising steps (default: as saved).
      quantize: "int8" or "fp8" stores the large weights in 8 bits (default: the type of the config).

    Returns:
      A `jworld.systems.runs.Run` with `generate`, `session` and `answer`.

    Raises:
      UserError: something is missing or damaged, or does not fit the model.
    """
    # Imported here, so that commands which need no model start fast.
    from jworld.systems import options, runs

    flags = options.Flags(size=size, aspect=aspect, fps=fps, guidance=guidance, steps=steps)
    directory = pathlib.Path(path)
    run = runs.load(directory, step, config=runs.resolve(directory, flags=flags), quantize=quantize)
    options.check_size(run.config, flags, run.encoders)
    return run


def __getattr__(name: str) -> str:
    """Read `__version__` from the installed package's metadata, which pyproject.toml is the source of."""
    if name == "__version__":
        from importlib import metadata

        return metadata.version("jworld")
    raise AttributeError(f"module 'jworld' has no attribute {name!r}")
