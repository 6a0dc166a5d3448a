"""The tensors of one model among those of a file, under the names of its key table.

Training checkpoints hold weights and their average under two prefixes, buffers and counters that are no weights, and,
where adapters were trained (LoRA in peft's layout), the adapters beside the matrices that they change.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from conversion import families, sources
from jworld import errors

_BASE, _DOWN, _UP = ".base_layer.weight", ".lora_A.default.weight", ".lora_B.default.weight"


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which of a file's weights to take.

    Attributes:
      average: the averaged ones, where the file has both.
      lora_alpha: adapters count alpha / rank; None for a factor of 1, as in the original's recipes.
    """

    average: bool = False
    lora_alpha: float | None = None


class Selected(sources.Source):
    """One model's tensors of another source, which stays to be closed; adapters are merged into their matrices.

    A file without an average gives the weights that it has. Adapters that do not fit are a `UserError`.

    Attributes:
      has_average: the file has averaged weights beside the others.
      rank: of the adapters, None without.
    """

    def __init__(self, source: sources.Source, layout: families.KeyLayout, selection: Selection) -> None:
        super().__init__(source.path, source.config, ())
        self.files = source.files
        names, self.has_average = _names(source.tensors, layout, selection)
        self._source, self._alpha = source, selection.lora_alpha
        self._merged: dict[str, tuple[str, str]] = {}
        self.rank: int | None = None
        for base in [name for name in names if name.endswith(_BASE)]:
            stem = base.removesuffix(_BASE)
            if stem + _DOWN in names and stem + _UP in names:
                down, up = names.pop(stem + _DOWN), names.pop(stem + _UP)
                self._check(base, names[base], down, up)
                names[f"{stem}.weight"] = names.pop(base)
                self._merged[f"{stem}.weight"] = (down, up)
                self.rank = source.tensors[down].shape[0]
        self._names = names
        self.tensors = {name: source.tensors[inside] for name, inside in names.items()}

    def read(self, name: str, index: sources.Index | None = None) -> np.ndarray:
        """As of any source; a merged matrix is computed in float32."""
        value = self._source.read(self._names[name], index)
        if name not in self._merged:
            return value
        rows, columns = (*(index or ()), slice(None), slice(None))[:2]
        down, up = self._merged[name]
        a = self._source.read(down, (slice(None), columns)).astype(np.float32)
        b = self._source.read(up, (rows,)).astype(np.float32)
        factor = 1.0 if self._alpha is None else self._alpha / len(a)
        return (value.astype(np.float32) + np.float32(factor) * (b @ a)).astype(value.dtype)

    def _check(self, base: str, *inside: str) -> None:
        matrix, down, up = (self._source.tensors[name].shape for name in inside)
        if len(matrix) != 2 or down[1:] != matrix[1:] or up[:1] != matrix[:1] or (up[1:] != down[:1]) or not down[0]:
            raise errors.UserError(
                f"{self.path}: the adapters of {base} {list(matrix)} have shapes {list(down)} and {list(up)}, expected "
                "[rank, columns] and [rows, rank]: the file is of something else"
            )


def check(selected: Selected, selection: Selection) -> None:
    """A `UserError` where a file has not what was asked for."""
    if selection.average and not selected.has_average:
        raise errors.UserError(f"{selected.path}: has no averaged weights beside others: leave --ema out")
    if selection.lora_alpha is not None and selected.rank is None:
        raise errors.UserError(f"{selected.path}: has no adapters: leave --lora-alpha out")


def _names(
    found: Mapping[str, sources.TensorInfo], layout: families.KeyLayout, selection: Selection
) -> tuple[dict[str, str], bool]:
    """Name in the key table -> name in the file, and whether that has both kinds of weights."""
    present = [prefix for prefix in layout.prefixes if any(name.startswith(prefix) for name in found)]
    chosen = "" if not present else present[-1] if selection.average else present[0]
    others = tuple(prefix for prefix in present if prefix != chosen)
    usual = layout.prefixes[0] if layout.prefixes else ""
    names = {}
    for name in found:
        if not layout.ignored.fullmatch(name) and not name.startswith(others):
            # What has no prefix in a file of prefixed names is none of the model's tensors, and keeps its name.
            names[usual + name.removeprefix(chosen) if name.startswith(chosen) else name] = name
    return names, len(present) > 1
