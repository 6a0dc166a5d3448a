"""Selection of one model's tensors from a file, with the names of its key table.

Training checkpoints contain weights and EMA weights with two prefixes, and buffers and counters that are not weights.
Adapters (LoRA) are in the same file as the matrices that they change (peft's layout), or in a separate file.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from conversion import adapter_files, adapter_placing, families, quantized, sources
from conversion.engine import Shape
from jworld.utils import errors

# The base of an adapted layer, in a checkpoint with its adapters.
_BASE_LAYER = ".base_layer."
# Rows of a head that are compared at once.
_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Selection:
    """Options that select weights of a file.

    Attributes:
      average: use the EMA weights of a file with both kinds.
      lora_alpha: alpha of adapters whose file does not state it; None for their rank, as in the original's recipes.
      adapters: path of a file or folder of adapters to merge into the weights.
      bases: paths of checkpoints with the tensors that are missing in the file.
      rows: number of embedding rows to use, from the first; None for all.
    """

    average: bool = False
    lora_alpha: float | None = None
    adapters: str | None = None
    bases: tuple[str, ...] = ()
    rows: int | None = None


class Selected(sources.Source):
    """Tensors of one model in another source, with adapters merged into them.

    The caller still closes the other source. A file without EMA weights gives its only weights. Adapters within the
    file are merged at once, those of a separate file after `place_adapters`.

    Attributes:
      has_ema: True if the file also has EMA weights.
      adapters: the adapters; None without any.
    """

    def __init__(self, source: sources.Source, layout: families.KeyLayout, selection: Selection) -> None:
        super().__init__(source.path, source.config, ())
        self.files = source.files
        self._layout, self._source = layout, source
        names, self.has_ema = _names(source.tensors, layout, selection)
        bases = {name: name.replace(_BASE_LAYER, ".") for name in names if _BASE_LAYER in name}
        own = {name: names.pop(name) for name in list(names) if adapter_files.is_part(name)}
        self._origins = {bases.get(name, name): (source, inside) for name, inside in names.items()}
        self._pieces: Mapping[str, Sequence[adapter_placing.Piece]] = {}
        self._heads = [(source, name) for name in layout.heads if name in source.tensors]
        self.adapters: adapter_files.Contents | None = None
        if own:
            self.adapters = adapter_files.read(source, own, alpha=selection.lora_alpha)
            self._add_own(self.adapters)
        for base in selection.bases:
            self._add_base(pathlib.Path(base), layout)
        if selection.adapters is not None:
            self.adapters = self._open_adapters(pathlib.Path(selection.adapters), selection)
        self.tensors = {name: origin.tensors[inside] for name, (origin, inside) in self._origins.items()}
        self._trim(layout, selection.rows)
        self._separate = selection.adapters is not None

    def read(self, name: str, index: sources.Index | None = None) -> np.ndarray:
        """Read a tensor as from any source; a merged tensor is computed in float32."""
        index = tuple(index or (slice(0, size) for size in self.tensors[name].shape))
        source, inside = self._origins[name]
        value = source.read(inside, index)
        if name not in self._pieces:
            return value
        index += tuple(slice(0, size) for size in self.tensors[name].shape[len(index) :])
        total = value.astype(np.float32)
        for piece in self._pieces[name]:
            total += piece.addition(index)
        return total.astype(value.dtype)

    def check_heads(self) -> None:
        """Compare output heads with the embedding, which they share their values with in the model.

        Raises:
          UserError: a head differs in a row that the model has.
        """
        if self._layout.embedding not in self._origins:
            return
        rows, width = self.tensors[self._layout.embedding].shape
        embedding, inside = self._origins[self._layout.embedding]
        for source, head in self._heads:
            shape = source.tensors[head].shape
            fits = len(shape) == 2 and shape[0] >= rows and shape[1] == width
            different = rows
            if fits:
                parts = (slice(first, min(first + _ROWS, rows)) for first in range(0, rows, _ROWS))
                different = sum(
                    int((source.read(head, (part,)) != embedding.read(inside, (part,))).any(axis=1).sum())
                    for part in parts
                )
            if different:
                raise errors.UserError(
                    f"{self.path}: {head} {list(shape)} differs from {inside} in {different} of {rows} rows, but here "
                    "one matrix is both the head and the embedding: give weights with a tied head "
                    "(tie_word_embeddings)"
                )

    def place_adapters(self, family: families.Family, shapes: Mapping[str, Shape], model: Any) -> None:
        """Find the tensors that the adapters of a separate file change.

        Args:
          family: the family of the model.
          shapes: shapes of the model's parameters.
          model: the model's config.

        Raises:
          UserError: adapters have no place or another shape.
        """
        if not self._separate or self.adapters is None:
            return
        found = {name: origin.tensors[inside].shape for name, (origin, inside) in self._origins.items()}
        layouts = {name: layout.rules(model) for name, layout in family.layouts.items()}
        placed = adapter_placing.place(self.adapters, found, layouts, shapes, self._layout, str(self.path))
        source = next(iter(self.adapters.adapters.values())).source
        for name, inside in placed.whole.items():
            if source.tensors[inside].shape != found[name]:
                raise errors.UserError(
                    f"{source.path}: {inside} is {list(source.tensors[inside].shape)}, here {list(found[name])}: the "
                    "adapters belong to another model"
                )
            self._origins[name] = (source, inside)
            self.tensors[name] = sources.TensorInfo(self.tensors[name].shape, source.tensors[inside].dtype)
        self._pieces = {
            name: [*self._pieces.get(name, ()), *placed.pieces.get(name, ())]
            for name in self._pieces.keys() | placed.pieces.keys()
        }

    def _open_adapters(self, path: pathlib.Path, selection: Selection) -> adapter_files.Contents:
        opened = sources.open_source(adapter_files.find(path), unwrap=False)
        self._source.adopt(opened)
        return adapter_files.read(opened, {name: name for name in opened.tensors}, alpha=selection.lora_alpha)

    def _add_own(self, contents: adapter_files.Contents) -> None:
        """Merge the adapters of the file itself, whose layers have the names of the key table."""
        pieces: dict[str, list[adapter_placing.Piece]] = {}
        wrong = [f"{name} is not part of an adapter" for name in contents.whole]
        for module, adapter in contents.adapters.items():
            for name in (f"{module}.weight", *([f"{module}.bias"] if adapter.bias else [])):
                if name not in self._origins:
                    wrong.append(f"{name} is missing")
                    continue
                shape = self._origins[name][0].tensors[self._origins[name][1]].shape
                if name.endswith("weight") and shape != adapter.shape:
                    wrong.append(adapter.misfit(name, shape))
                pieces.setdefault(name, []).append(adapter_placing.Piece(adapter))
        if wrong:
            raise errors.UserError(f"{self.path}: {'; '.join(wrong)}: the file belongs to another model")
        self._pieces = pieces

    def _add_base(self, path: pathlib.Path, layout: families.KeyLayout) -> None:
        """Add the tensors of another checkpoint that neither the file nor an earlier base has."""
        if layout.from_base is None:
            raise errors.UserError(f"--base {path}: checkpoints of {layout.title} are complete: leave --base out")
        opened = sources.open_source(path)
        self._source.adopt(opened)
        if adapter_files.are_adapters(opened.tensors):
            raise errors.UserError(
                f"--base {path}: has adapters (LoRA) alone, expected whole weights: give the checkpoint that they were "
                f"trained on, with them merged by `python -m conversion fuse CHECKPOINT {path} --output DIR` and export"
            )
        quantized.refuse(opened)
        found = layout.from_base(opened.tensors)
        if not found:
            raise errors.UserError(f"--base {path}: has no tensor of this model: give another checkpoint")
        if layout.embedding in found and layout.embedding not in self._origins:
            self._heads += [(opened, name) for name in layout.heads if name in opened.tensors]
        for name, inside in found.items():
            self._origins.setdefault(name, (opened, inside))

    def _trim(self, layout: families.KeyLayout, rows: int | None) -> None:
        """Remove the last rows of the embedding, which no token of the model uses."""
        info = self.tensors.get(layout.embedding or "")
        if layout.embedding is None or info is None or rows is None:
            return
        if rows > info.shape[0]:
            raise errors.UserError(
                f"{self.path}: the embedding has {info.shape[0]} rows, but the model {rows}: give files with enough "
                f"rows, such as those of gemma-3-4b-it, or give --config.model.vocabulary={info.shape[0]} and, with a "
                "world, lower numbers for model.world.start_token and model.world.end_token"
            )
        self.tensors[layout.embedding] = sources.TensorInfo((rows, *info.shape[1:]), info.dtype)


def check(selected: Selected, selection: Selection) -> None:
    """Raise a `UserError` if the file lacks the selected EMA weights or adapters."""
    if selection.average and not selected.has_ema:
        raise errors.UserError(f"{selected.path}: has no separate EMA weights: leave --ema out")
    if selection.lora_alpha is not None and selected.adapters is None:
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
