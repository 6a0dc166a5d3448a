"""One file per system: how tests of every command make a run of it at a small size, `CASE` in each."""

import dataclasses
import importlib
import pkgutil

#: Few short episodes, as for every system whose records come from the recorded rooms.
FEW_EPISODES = (
    "--config.data.recording.episodes=4",
    "--config.data.recording.frames=41",
    "--config.data.recording.image_size=(64,48)",
    "--config.global_batch=4",
)


@dataclasses.dataclass(frozen=True)
class Case:
    """Recipe of a system, settings for a small size, and arguments of `generate` and `evaluate` after the checkpoint.

    The words IMAGE and OUT.mp4 stand for an image and for the video to write.
    """

    recipe: str
    settings: tuple[str, ...]
    generate: tuple[str, ...] = ()
    evaluate: tuple[str, ...] = ("--windows=1", "--chunks=1")


def load() -> dict[str, Case]:
    """Return the cases by the name of their system."""
    return {
        module.name: importlib.import_module(f"{__name__}.{module.name}").CASE
        for module in pkgutil.iter_modules(__path__)
    }
