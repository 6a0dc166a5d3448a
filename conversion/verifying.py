"""Verify: every element of jworld's weights against the PyTorch checkpoint that they came from."""

import dataclasses
import math
import pathlib
from collections.abc import Sequence

import numpy as np
import rich.console

from conversion import engine, families, folders, importing, outputs, selecting, sources
from jworld.utils import errors


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was compared and found equal."""

    tensors: int
    parameters: int
    checksum: str
    ignored: Sequence[str]


def verify(
    directory: pathlib.Path, path: pathlib.Path, *, step: int | None = None, console: rich.console.Console | None = None
) -> Summary:
    """Compare the weights in `directory` with the checkpoint `path`, bit for bit in the dtype they are stored in.

    Raises:
      UserError: they differ, with the names of all tensors that do; one of them is damaged, or of another model.
    """
    weights = folders.open_weights(directory, step)
    record = weights.record or {}
    with sources.open_source(path) as opened:
        _, layout = families.detect(opened.tensors, str(path), family=weights.family.name)
        source = selecting.Selected(opened, layout, selecting.Selection(**record.get("selection", {})))
        shapes = {name: leaf.shape for name, leaf in weights.arrays.items()}
        places = engine.plan(shapes, layout.rules(weights.target.model_config))
        found = {name: info.shape for name, info in source.tensors.items()}
        exceptions = [*record.get("ignored", []), *record.get("initial", [])]
        listed = [problem for problem in engine.problems(found, shapes, places) if problem.name not in exceptions]
        engine.check(listed, str(path), f"{directory} was made of another checkpoint")
        different = []
        with outputs.progress(console) as bar:
            sizes = {name: math.prod(leaf.shape) * leaf.dtype.itemsize for name, leaf in weights.arrays.items()}
            task = bar.add_task("comparing", total=sum(sizes.values()))
            for parameter in weights.arrays:
                array = weights.read(parameter)
                for name, place in engine.places_of(places, parameter).items():
                    if name in found and not _equal(place.take(array), source.read(name)):
                        different.append(name)
                bar.advance(task, sizes[parameter])
    if different:
        raise errors.UserError(
            f"{len(different)} of {len(found)} tensors of {path} are not those in {directory}: {', '.join(different)}"
        )
    return Summary(
        len(places.keys() & found.keys()),
        sum(math.prod(shape) for shape in shapes.values()),
        importing.total_checksum(weights.checksums),
        [name for name in exceptions if name in found],
    )


def _equal(stored: np.ndarray, tensor: np.ndarray) -> bool:
    mine = np.empty(stored.shape, stored.dtype)
    engine.copy(mine, stored)
    with np.errstate(over="ignore"):
        theirs = np.ascontiguousarray(tensor.astype(stored.dtype, copy=False))
    return np.array_equal(mine.reshape(-1).view(np.uint8), theirs.reshape(-1).view(np.uint8))
