"""Other models in the folder of a checkpoint, and how to use each of them."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Neighbor:
    """A model in the folder of published weights.

    Attributes:
      name: its file or folder in that folder.
      note: how to use it, for the user; `{path}` is the file or folder, and `{folder}` the folder of the weights.
      mark: another file or folder that must exist next to it, so that the folder is that of published weights.
    """

    name: str
    note: str
    mark: str = "model_index.json"


def notes(*neighbors: Neighbor) -> Callable[[pathlib.Path], list[str]]:
    """Return the function `folder_notes` of a family whose published weights are next to these models."""
    return functools.partial(_notes, neighbors=neighbors)


def _notes(path: pathlib.Path, neighbors: tuple[Neighbor, ...]) -> list[str]:
    """Return the notes for the nearest folder with any of the models: `path` or one of the three above."""
    for folder in (path, *path.parents[:3]):
        found = [each for each in neighbors if (folder / each.mark).exists() and (folder / each.name).exists()]
        if found:
            return [each.note.format(path=folder / each.name, folder=folder) for each in found]
    return []


def autoencoder(name: str, output: str, mark: str = Neighbor.mark) -> Neighbor:
    """Return a video autoencoder, whose import writes `output`."""
    return Neighbor(name, f"its autoencoder: python -m conversion import {{path}} --output {output}", mark)


def encoder(name: str, flag: str, spec: str, mark: str = Neighbor.mark) -> Neighbor:
    """Return an encoder; `spec` is the value of `flag`."""
    words = flag.removeprefix("--").replace("-", " ")
    return Neighbor(name, f"its {words}: {flag} {spec}, for precompute and generate", mark)
