"""Comparison of every element of jworld's weights with the original PyTorch checkpoint."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import rich.console

from conversion import engine, families, folders, importing, outputs, selecting, sources
from jworld.utils import errors


@dataclasses.dataclass(frozen=True)
class Summary:
    """Summary of the tensors that were compared and are equal."""

    tensors: int
    parameters: int
    checksum: str
    ignored: Sequence[str]


def verify(
    directory: pathlib.Path, path: pathlib.Path, *, step: int | None = None, console: rich.console.Console | None = None
) -> Summary:
    """Compare the weights in `directory` with the checkpoint `path`, bit for bit in the stored dtype.

    Raises:
      UserError: tensors differ (the message lists all of them), one side is damaged, or the models differ.
    """
    weights = folders.open_weights(directory, step)
    record = weights.record or {}
    with sources.open_source(path) as opened:
        family, layout = families.detect(opened.tensors, str(path), family=weights.family.name)
        source = selecting.Selected(opened, layout, selecting.Selection(**record.get("selection", {})))
        shapes = _compared(weights, layout, source)
        places = engine.plan(shapes, layout.rules(weights.target.model_config))
        source.place_adapters(family, shapes, weights.target.model_config)
        found = {name: info.shape for name, info in source.tensors.items()}
        exceptions = [*record.get("ignored", []), *record.get("initial", [])]
        listed = [problem for problem in engine.problems(found, shapes, places) if problem.name not in exceptions]
        engine.check(listed, str(path), f"{directory} was imported from another checkpoint")
        different = []
        with outputs.progress(console) as bar:
            sizes = {name: math.prod(shapes[name]) * weights.arrays[name].dtype.itemsize for name in shapes}
            task = bar.add_task("comparing", total=sum(sizes.values()))
            for parameter in shapes:
                array = weights.read(parameter)
                for name, place in engine.places_of(places, parameter).items():
                    if name in found and not _equal(place.take(array), source.read(name)):
                        different.append(name)
                bar.advance(task, sizes[parameter])
    if different:
        raise errors.UserError(
            f"{len(different)} of {len(found)} tensors of {path} differ from {directory}: {', '.join(different)}"
        )
    return Summary(
        len(places.keys() & found.keys()),
        sum(math.prod(shape) for shape in shapes.values()),
        importing.total_checksum(weights.checksums),
        [name for name in exceptions if name in found],
    )


def _compared(weights: folders.Weights, layout: families.KeyLayout, source: sources.Source) -> dict[str, engine.Shape]:
    """Return the shapes of the parameters, without those that an export in this layout leaves out."""
    shapes = {name: leaf.shape for name, leaf in weights.arrays.items()}
    places = engine.plan(shapes, layout.rules(weights.target.model_config))
    present = {place.path for name, place in places.items() if name in source.tensors}
    return {path: shape for path, shape in shapes.items() if path in present or not re.fullmatch(layout.omits, path)}


def _equal(stored: np.ndarray, tensor: np.ndarray) -> bool:
    mine = np.empty(stored.shape, stored.dtype)
    engine.copy(mine, stored)
    with np.errstate(over="ignore"):
        theirs = np.ascontiguousarray(tensor.astype(stored.dtype, copy=False))
    return np.array_equal(mine.reshape(-1).view(np.uint8), theirs.reshape(-1).view(np.uint8))
