"""Selection of one model's tensors from a file, with the names of its key table.

Training checkpoints contain weights and EMA weights with two prefixes, and buffers and counters that are not weights.
Adapters (LoRA in peft's layout) are in the same file as the matrices that they change, or in a separate file.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

import numpy as np

from conversion import families, sources
from jworld.utils import errors

_BASE, _DOWN, _UP = ".base_layer.weight", ".lora_A.default.weight", ".lora_B.default.weight"
# In a separate file.
_DOWN_ALONE, _UP_ALONE = ".lora_A.weight", ".lora_B.weight"


@dataclasses.dataclass(frozen=True)
class Selection:
    """Options that select weights of a file.

    Attributes:
      average: use the EMA weights of a file with both kinds.
      lora_alpha: adapters are multiplied by alpha / rank; None for a factor of 1, as in the original's recipes.
      adapters: path of an adapter file to merge into the weights.
      bases: paths of checkpoints with the tensors that are missing in the file.
      rows: number of embedding rows to use, from the first; None for all.
    """

    average: bool = False
    lora_alpha: float | None = None
    adapters: str | None = None
    bases: tuple[str, ...] = ()
    rows: int | None = None


@dataclasses.dataclass(frozen=True)
class _Pair:
    """Matrices of an adapter: their source and the names of both tensors."""

    source: sources.Source
    down: str
    up: str


class Selected(sources.Source):
    """Tensors of one model in another source, with adapters merged into their matrices.

    The caller still closes the other source. A file without EMA weights gives its only weights. Adapters of other
    shapes are a `UserError`.

    Attributes:
      has_ema: True if the file also has EMA weights.
      rank: rank of the adapters; None without adapters.
    """

    def __init__(self, source: sources.Source, layout: families.KeyLayout, selection: Selection) -> None:
        super().__init__(source.path, source.config, ())
        self.files = source.files
        names, self.has_ema = _names(source.tensors, layout, selection)
        self._source, self._alpha = source, selection.lora_alpha
        self._merged: dict[str, _Pair] = {}
        self.rank: int | None = None
        for base in [name for name in names if name.endswith(_BASE)]:
            stem = base.removesuffix(_BASE)
            if stem + _DOWN in names and stem + _UP in names:
                pair = _Pair(source, names.pop(stem + _DOWN), names.pop(stem + _UP))
                names[f"{stem}.weight"] = names.pop(base)
                self._add(f"{stem}.weight", names[f"{stem}.weight"], pair)
        self._names = names
        self._bases: dict[str, tuple[sources.Source, str]] = {}
        for base in selection.bases:
            self._add_base(pathlib.Path(base), layout)
        if selection.adapters is not None:
            self._add_file(pathlib.Path(selection.adapters), layout)
        self.tensors = {name: source.tensors[inside] for name, inside in names.items()}
        self.tensors |= {name: base.tensors[inside] for name, (base, inside) in self._bases.items()}
        self._trim(layout, selection.rows)

    def read(self, name: str, index: sources.Index | None = None) -> np.ndarray:
        """Read a tensor as from any source; a merged matrix is computed in float32."""
        if name in self._bases or index is None:
            index = tuple(index or (slice(0, size) for size in self.tensors[name].shape))
        if name in self._bases:
            base, inside = self._bases[name]
            return base.read(inside, index)
        value = self._source.read(self._names[name], index)
        if name not in self._merged:
            return value
        rows, columns = (*(index or ()), slice(None), slice(None))[:2]
        pair = self._merged[name]
        a = pair.source.read(pair.down, (slice(None), columns)).astype(np.float32)
        b = pair.source.read(pair.up, (rows,)).astype(np.float32)
        factor = 1.0 if self._alpha is None else self._alpha / len(a)
        return (value.astype(np.float32) + np.float32(factor) * (b @ a)).astype(value.dtype)

    def _add_base(self, path: pathlib.Path, layout: families.KeyLayout) -> None:
        """Add the tensors of another checkpoint that neither the file nor an earlier base has."""
        if layout.from_base is None:
            raise errors.UserError(f"--base {path}: checkpoints of {layout.title} are complete: leave --base out")
        opened = sources.open_source(path)
        self._source.adopt(opened)
        found = layout.from_base(opened.tensors)
        if not found:
            raise errors.UserError(f"--base {path}: has no tensor of this model: give another checkpoint")
        for name, inside in found.items():
            if name not in self._names and name not in self._bases:
                self._bases[name] = (opened, inside)

    def _trim(self, layout: families.KeyLayout, rows: int | None) -> None:
        """Remove the last rows of the embedding, which no token of the model uses."""
        info = self.tensors.get(layout.embedding or "")
        if layout.embedding is None or info is None or rows is None:
            return
        if rows > info.shape[0]:
            raise errors.UserError(
                f"{self.path}: the embedding has {info.shape[0]} rows, but the model {rows}: give files with enough "
                f"rows, such as those of gemma-3-4b-it, or give --set model.vocabulary={info.shape[0]} and, with a "
                "world, lower numbers for model.world.start_token and model.world.end_token"
            )
        self.tensors[layout.embedding] = sources.TensorInfo((rows, *info.shape[1:]), info.dtype)

    def _add_file(self, path: pathlib.Path, layout: families.KeyLayout) -> None:
        """Add the adapters of a separate file."""
        if layout.adapter_prefix is None:
            raise errors.UserError(f"{path}: adapter files are not supported for the layout of {layout.title}")
        opened = sources.open_source(path)
        self._source.adopt(opened)
        unknown = set(opened.tensors)
        for name, inside in self._names.items():
            stem = layout.adapter_prefix + name.removesuffix(".weight")
            if {stem + _DOWN_ALONE, stem + _UP_ALONE} <= unknown:
                self._add(name, inside, _Pair(opened, stem + _DOWN_ALONE, stem + _UP_ALONE))
                unknown -= {stem + _DOWN_ALONE, stem + _UP_ALONE}
        if unknown or not opened.tensors:
            first = ", ".join(sorted(unknown)[:3])
            raise errors.UserError(
                f"{path}: {len(unknown)} of {len(opened.tensors)} tensors are not adapters of {self.path}"
                + (f", such as {first}" if first else "")
                + f"; expected pairs {layout.adapter_prefix}<matrix>{_DOWN_ALONE} and {_UP_ALONE}"
            )

    def _add(self, name: str, inside: str, pair: _Pair) -> None:
        matrix = self._source.tensors[inside].shape
        down, up = pair.source.tensors[pair.down].shape, pair.source.tensors[pair.up].shape
        if len(matrix) != 2 or down[1:] != matrix[1:] or up[:1] != matrix[:1] or (up[1:] != down[:1]) or not down[0]:
            raise errors.UserError(
                f"{pair.source.path}: the adapters of {name} {list(matrix)} have shapes {list(down)} and {list(up)}, "
                "expected [rank, columns] and [rows, rank]: the file belongs to another model"
            )
        self._merged[name] = pair
        self.rank = down[0]


def check(selected: Selected, selection: Selection) -> None:
    """Raise a `UserError` if the file lacks the selected EMA weights or adapters."""
    if selection.average and not selected.has_ema:
        raise errors.UserError(f"{selected.path}: has no separate EMA weights: leave --ema out")
    if selection.lora_alpha is not None and selected.rank is None:
        raise errors.UserError(f"{selected.path}: has no adapters: leave --lora-alpha out")


def _names(
    found: Mapping[str, sources.TensorInfo], layout: families.KeyLayout, selection: Selection
) -> tuple[dict[str, str], bool]:
    """Map names in the key table to names in the file; -> (names, whether the file has both kinds of weights)."""
    present = [prefix for prefix in layout.prefixes if any(name.startswith(prefix) for name in found)]
    chosen = "" if not present else present[-1] if selection.average else present[0]
    others = tuple(prefix for prefix in present if prefix != chosen)
    usual = layout.prefixes[0] if layout.prefixes else ""
    names = {}
    for name in found:
        if not layout.ignored.fullmatch(name) and not name.startswith(others):
            # In a file with prefixes, a tensor without one is not of the model; it keeps its name.
            names[usual + name.removeprefix(chosen) if name.startswith(chosen) else name] = name
    return names, len(present) > 1
