"""Comparison of every element of jworld's weights with the original PyTorch checkpoint."""

import dataclasses
import math
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import rich.console

from conversion import digests, engine, families, folders, outputs, pieces, selecting, sources
from jworld.utils import errors

#: Bytes that are compared at once, few enough for the processor's cache.
_BLOCK = 1 << 18


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
        work = [piece for path in shapes for piece in weights.pieces(path, engine.places_of(places, path))]
        different: set[str] = set()
        with outputs.progress(console) as bar:
            task = bar.add_task("comparing", total=sum(piece.size for piece in work))

            def compare(piece: pieces.Piece) -> None:
                for name, value, rows in piece.take(weights.read(piece.path, piece.rows)):
                    if name in found and not _equal(value, source.read(name, None if rows is None else (rows,))):
                        different.add(name)
                bar.advance(task, piece.size)

            pieces.process(work, compare)
    if different:
        names = ", ".join(sorted(different))
        raise errors.UserError(f"{len(different)} of {len(found)} tensors of {path} differ from {directory}: {names}")
    return Summary(
        len(places.keys() & found.keys()),
        sum(math.prod(shape) for shape in shapes.values()),
        digests.of_all(weights.checksums),
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
    first, second = (each.reshape(-1).view(np.uint8) for each in (mine, theirs))
    starts = range(0, first.size, _BLOCK)
    return all(np.array_equal(first[start : start + _BLOCK], second[start : start + _BLOCK]) for start in starts)
