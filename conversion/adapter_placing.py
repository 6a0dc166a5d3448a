"""Places in a checkpoint for the adapters (LoRA) of a file, whatever program and key layout they were made with.

Names of layers are looked up without the names of wrappers before them, and with `_` for `.`, in every key layout of
the family. So adapters for the diffusers form of a model can be merged into its original checkpoint.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from conversion import adapter_files, engine
from conversion.base import KeyLayout
from conversion.engine import Shape, TensorPlacement
from jworld.utils import errors

#: Names before the layers' names: of wrappers, of a pipeline's part, of the network in its program.
WORDS = ("base_model", "model", "module", "_orig_mod", "diffusion_model", "transformer", "net", "net_ema", "dit")
# Beginnings of names with "_" for ".".
_FLAT = ("lora_unet_", "lora_transformer_", "lora_dit_", "lycoris_", "lora_")


@dataclasses.dataclass(frozen=True)
class Piece:
    """Change of one tensor of a checkpoint.

    Attributes:
      adapter: the adapter.
      rows: for each row of the tensor the adapter's row, -1 for none; None if they are the same.
    """

    adapter: adapter_files.Adapter
    rows: np.ndarray | None = None

    def addition(self, index: tuple[slice, ...]) -> np.ndarray:
        """Return a part of the change, float32, of the matrix (two axes) or of the bias (one axis)."""
        rows = index[0] if self.rows is None else self.rows[index[0]]
        return self.adapter.addition(rows, index[1]) if len(index) == 2 else self.adapter.bias_addition(rows)


@dataclasses.dataclass(frozen=True)
class Placed:
    """Changes of a checkpoint's tensors, by their names.

    Attributes:
      pieces: changes to add.
      whole: tensors of the adapter file that replace those of the checkpoint: name -> name in the adapter file.
    """

    pieces: Mapping[str, Sequence[Piece]]
    whole: Mapping[str, str]


def place(
    contents: adapter_files.Contents,
    found: Mapping[str, Shape],
    layouts: Mapping[str, Sequence[engine.Rule]],
    shapes: Mapping[str, Shape],
    own: KeyLayout,
    where: str,
) -> Placed:
    """Find the tensors that the adapters change.

    Args:
      contents: the adapters.
      found: names and shapes of the checkpoint's tensors.
      layouts: key tables of the family; the layout that places most adapters is used, the checkpoint's own if in doubt.
      shapes: shapes of the model's parameters.
      own: layout of the checkpoint.
      where: the checkpoint, for messages.

    Raises:
      UserError: one message with everything that has no place or another shape.
    """
    plans = {name: engine.plan(shapes, rules) for name, rules in layouts.items()}
    order = [own.name, *(name for name in plans if name != own.name)]
    tables = {name: _Table(plans[name]) for name in order}
    counts = {
        name: sum(table.layer(module) is not None for module in contents.adapters) for name, table in tables.items()
    }
    table = tables[max(order, key=lambda name: counts[name])]
    placer = _Placer(found, plans[own.name], table)
    for module, adapter in contents.adapters.items():
        placer.add(module, adapter)
    for name, inside in contents.whole.items():
        if not own.ignored.fullmatch(name):
            placer.replace(name, inside)
    placer.check(contents, where)
    return Placed(placer.pieces, placer.whole)


class _Table:
    """Names of a key layout's tensors, looked up by the names in adapter files."""

    def __init__(self, places: Mapping[str, TensorPlacement]) -> None:
        self.places = places
        self._plain = {[*_candidates(name)][-1]: name for name in places}
        self._flat = {name.replace(".", "_"): name for name in self._plain}

    def layer(self, module: str) -> str | None:
        """Return the name of a layer's matrix; None if there is no such layer."""
        return self.tensor(f"{module}.weight")

    def tensor(self, name: str) -> str | None:
        """Return the name of a tensor in the layout; None if there is no such tensor."""
        for candidate in _candidates(name):
            if candidate in self.places:
                return candidate
            if candidate in self._plain:
                return self._plain[candidate]
        module, _, ending = name.rpartition(".")
        if "." in module:
            return None
        for candidate in _flat_candidates(module):
            if (flat := f"{candidate}_{ending}") in self._flat:
                return self._plain[self._flat[flat]]
        return None


def _candidates(name: str) -> Iterator[str]:
    """Yield a name, then without its first word while that is one of `WORDS`."""
    yield name
    while True:
        word, dot, rest = name.partition(".")
        if not dot or word not in WORDS or "." not in rest:
            return
        name = rest
        yield name


def _flat_candidates(name: str) -> Iterator[str]:
    beginning = next((each for each in _FLAT if name.startswith(each)), "")
    name = name.removeprefix(beginning)
    yield name
    for word in WORDS:
        if name.startswith(word + "_"):
            yield name.removeprefix(word + "_")


def _in_order(rows: np.ndarray, place: TensorPlacement) -> np.ndarray:
    """Convert numbers of a tensor's rows to those of the parameter's last axis, or back."""
    return np.roll(rows, len(rows) // 2) if place.layout.halves_swapped else rows


class _Placer:
    def __init__(self, found: Mapping[str, Shape], places: Mapping[str, TensorPlacement], table: _Table) -> None:
        self._found, self._places, self._table = found, places, table
        self._by_spot: dict[tuple[str, int | None], list[str]] = {}
        for name, place in places.items():
            self._by_spot.setdefault((place.path, place.layer), []).append(name)
        self.pieces: dict[str, list[Piece]] = {}
        self.whole: dict[str, str] = {}
        self._unplaced: list[str] = []
        self._misshapen: list[str] = []
        self._seen: dict[str, str] = {}

    def add(self, module: str, adapter: adapter_files.Adapter) -> None:
        name = self._table.layer(module)
        if name is None:
            names = [adapter.down, adapter.up, *([adapter.bias] if adapter.bias else [])]
            self._unplaced += names
            return
        if name in self._seen:
            self._misshapen.append(f"{module} and {self._seen[name]} are adapters of one layer, {name}")
        self._seen[name] = module
        place = self._table.places[name]
        is_linear = place.layout.axes == engine.TRANSPOSED.axes and len(place.shape) == 2
        if not is_linear and not adapter.embedding:
            self._misshapen.append(f"{module} is not a linear layer, but a tensor {list(place.source_shape)}")
            return
        self._add_matrix(name, adapter, place)
        if adapter.bias is not None:
            self._add_bias(module, adapter)

    def _add_matrix(self, name: str, adapter: adapter_files.Adapter, place: TensorPlacement) -> None:
        targets = self._targets(place)
        # The checkpoint's table of an embedding may have more rows than the model.
        expected = self._found[targets[0][0]] if adapter.embedding and targets else place.source_shape
        if tuple(adapter.shape) != tuple(expected):
            self._misshapen.append(adapter.misfit(name, expected))
        elif not targets:
            self._unplaced += [adapter.down, adapter.up]
        for target, rows in targets:
            self.pieces.setdefault(target, []).append(Piece(adapter, None if adapter.embedding else rows))

    def _add_bias(self, module: str, adapter: adapter_files.Adapter) -> None:
        assert adapter.bias is not None
        name = self._table.tensor(f"{module}.bias")
        targets = [] if name is None else self._targets(self._table.places[name])
        if not targets:
            self._misshapen.append(f"{adapter.bias} is for a bias, which {module} does not have here")
        elif adapter.source.tensors[adapter.bias].shape != (adapter.shape[0],):
            self._misshapen.append(f"{adapter.bias} is {list(adapter.source.tensors[adapter.bias].shape)}")
        for target, rows in targets:
            self.pieces.setdefault(target, []).append(Piece(adapter, rows))

    def replace(self, name: str, inside: str) -> None:
        """Add a whole tensor, which must be one of the checkpoint's with the same layout."""
        own = self._table.tensor(name)
        place = None if own is None else self._table.places[own]
        targets = [] if place is None else self._targets(place)
        if place is not None and len(targets) == 1 and self._places[targets[0][0]] == place:
            self.whole[targets[0][0]] = inside
        else:
            self._unplaced.append(inside)

    def _targets(self, place: TensorPlacement) -> list[tuple[str, np.ndarray | None]]:
        """Return the checkpoint's tensors in which a placed tensor lies, with its row for each of theirs."""
        others = self._by_spot.get((place.path, place.layer), ())
        end = place.start + place.shape[-1]
        ends = [self._places[name].start + self._places[name].shape[-1] for name in others]
        numbers = np.full(max([end, *ends]), -1)
        numbers[place.start : end] = _in_order(np.arange(place.shape[-1]), place)
        targets: list[tuple[str, np.ndarray | None]] = []
        for name in others:
            other = self._places[name]
            rows = _in_order(numbers[other.start : other.start + other.shape[-1]], other)
            if name in self._found and (rows >= 0).any():
                targets.append((name, None if np.array_equal(rows, np.arange(place.shape[-1])) else rows))
        return targets

    def check(self, contents: adapter_files.Contents, where: str) -> None:
        """Raise one `UserError` for everything that has no place in the checkpoint `where`."""
        total = sum(2 + (each.bias is not None) for each in contents.adapters.values()) + len(contents.whole)
        listed = list(self._misshapen)
        if self._unplaced:
            names = ", ".join(self._unplaced)
            listed.insert(0, f"{len(self._unplaced)} of {total} tensors are not adapters of {where}: {names}")
        if listed:
            raise errors.UserError(
                f"{contents.where}: {'; '.join(listed)}: the adapters belong to another model, or to another part of a "
                "pipeline"
            )
