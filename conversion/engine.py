"""Key tables: which tensor of a PyTorch checkpoint lies where in a model's parameters, in both directions.

A table is a sequence of rules. `plan` unfolds it for one model into the place of every tensor; importing reads a slice
of a parameter from the tensors that hold it, exporting asks a parameter for the tensors that it holds.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from flax import nnx

from jworld.utils import errors

Shape = tuple[int, ...]
Index = tuple[slice, ...]
_BAND = 16
#: (tensor's name, box) -> that box of the tensor.
Read = Callable[[str, Index], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one PyTorch tensor (the source) lies in ours (the target).

    Attributes:
      axes: for each axis of the target the source axes that are merged into it, in order; empty: the same axes.
      inner: sizes of the merged source axes except the first one of each group, in the order of `axes`: what the
        target's shape alone does not tell.
      halves_swapped: the halves of the target's last axis stand in the other order in the source.
    """

    axes: tuple[tuple[int, ...], ...] = ()
    inner: tuple[int, ...] = ()
    halves_swapped: bool = False

    def source_shape(self, shape: Shape) -> Shape:
        """The source's shape for a target of `shape`."""
        if not self.axes:
            return shape
        sizes: dict[int, int] = {}
        inner = iter(self.inner)
        for size, (first, *rest) in zip(shape, self.axes, strict=True):
            sizes |= {axis: next(inner) for axis in rest}
            merged = math.prod(sizes[axis] for axis in rest)
            if size % merged:
                raise ValueError(f"an axis of {size} is no multiple of the merged sizes {self.inner}")
            sizes[first] = size // merged
        return tuple(sizes[axis] for axis in range(len(sizes)))

    def to_target(self, tensor: np.ndarray) -> np.ndarray:
        """Source -> target, a view where that is possible."""
        return self._swap(self._arrange(tensor))

    def to_source(self, value: np.ndarray) -> np.ndarray:
        """Target -> source, the inverse of `to_target`."""
        value = self._swap(value)
        if not self.axes:
            return value
        order = [axis for group in self.axes for axis in group]
        sizes = self.source_shape(value.shape)
        return value.reshape([sizes[axis] for axis in order]).transpose(np.argsort(order))

    def read(self, read: Callable[[Index], np.ndarray], shape: Shape, index: Index) -> np.ndarray:
        """The part `index` of the target of `shape`; `read` is asked for the boxes of the source that it needs."""
        if not self.halves_swapped:
            return self._read(read, shape, index)
        half, last = shape[-1] // 2, index[-1]
        parts = []
        for start, shift in ((0, half), (half, -half)):
            low, high = max(last.start, start), min(last.stop, start + half)
            if low < high:
                parts.append(self._read(read, shape, (*index[:-1], slice(low + shift, high + shift))))
        return np.concatenate(parts, axis=-1)

    def _read(self, read: Callable[[Index], np.ndarray], shape: Shape, index: Index) -> np.ndarray:
        if not self.axes:
            return read(index)
        sizes = self.source_shape(shape)
        box = [slice(0, size) for size in sizes]
        cut = []
        for span, (first, *rest) in zip(index, self.axes, strict=True):
            # A span of a merged axis lies within these whole rows of its first source axis.
            merged = math.prod(sizes[axis] for axis in rest)
            row = span.start // merged
            box[first] = slice(row, -(-span.stop // merged))
            cut.append(slice(span.start - row * merged, span.stop - row * merged))
        return self._arrange(read(tuple(box)))[tuple(cut)]

    def _arrange(self, tensor: np.ndarray) -> np.ndarray:
        if not self.axes:
            return tensor
        shape = [math.prod(tensor.shape[axis] for axis in group) for group in self.axes]
        return tensor.transpose([axis for group in self.axes for axis in group]).reshape(shape)

    def _swap(self, value: np.ndarray) -> np.ndarray:
        return np.roll(value, value.shape[-1] // 2, axis=-1) if self.halves_swapped else value


IDENTITY = Layout()
#: nn.Linear weight [out, in] -> kernel [in, out].
TRANSPOSED = Layout(((1,), (0,)))
#: Convolution [O, I, l], [O, I, h, w], [O, I, t, h, w] -> the spatial axes first, then I, O.
CONV1D = Layout(((2,), (1,), (0,)))
CONV2D = Layout(((2,), (3,), (1,), (0,)))
CONV3D = Layout(((2,), (3,), (4,), (1,), (0,)))
#: Norm weight with trailing axes of 1, [C, 1, 1] and [C, 1, 1, 1] -> [C].
GAMMA2D = Layout(((0, 1, 2),), (1, 1))
GAMMA3D = Layout(((0, 1, 2, 3),), (1, 1, 1))
#: The same vector or linear layer with the halves of its outputs exchanged: (scale, shift) -> (shift, scale).
SWAPPED = Layout(halves_swapped=True)
TRANSPOSED_SWAPPED = Layout(((1,), (0,)), halves_swapped=True)


def patch_kernel(patch: Shape) -> Layout:
    """Convolution with kernel = stride = `patch`, [O, I, *patch] -> kernel of the equal linear layer, [I*prod, O]."""
    return Layout(((1, *range(2, 2 + len(patch))), (0,)), patch)


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a key table.

    `source` and `target` are templates: `{name}` stands for a number that both sides share, and `{layer}`, in the
    source alone, is the index on the leading axis of a stacked parameter.

    Attributes:
      source: the tensor's name, as `double_blocks.{layer}.img_mod.linear.weight`.
      target: the parameter's path, as `blocks/image/modulation/linear/kernel`.
      layout: how the tensor lies in the parameter (in one layer of it).
      part: (i, n): the tensor is the i-th of n equal parts of the parameter's last axis, as q of a fused qkv.
    """

    source: str
    target: str
    layout: Layout = IDENTITY
    part: tuple[int, int] = (0, 1)


@dataclasses.dataclass(frozen=True)
class TensorPlacement:
    """Where one tensor lies: in the parameter `path`, of one layer of it or whole (None), a part of the last axis.

    `shape` is that of the tensor in our layout; `start` is its first element on the parameter's last axis.
    """

    path: str
    layer: int | None
    layout: Layout
    shape: Shape
    start: int

    @property
    def source_shape(self) -> Shape:
        return self.layout.source_shape(self.shape)

    def take(self, parameter: np.ndarray) -> np.ndarray:
        """The tensor, in its PyTorch layout, out of the whole parameter."""
        value = parameter if self.layer is None else parameter[self.layer]
        if self.shape:
            value = value[..., self.start : self.start + self.shape[-1]]
        return self.layout.to_source(value)

    def copy_into(self, block: np.ndarray, index: Index, read: Callable[[Index], np.ndarray]) -> None:
        """Read what this tensor holds of the part `index` of the parameter into `block`, an array of that part."""
        if self.layer is not None:
            if not index[0].start <= self.layer < index[0].stop:
                return
            block, index = block[self.layer - index[0].start], index[1:]
        if self.shape:
            last = index[-1]
            low, high = max(last.start, self.start), min(last.stop, self.start + self.shape[-1])
            if low >= high:
                return
            block = block[..., low - last.start : high - last.start]
            index = (*index[:-1], slice(low - self.start, high - self.start))
        copy(block, self.layout.read(read, self.shape, index))


def plan(shapes: Mapping[str, Shape], rules: Sequence[Rule]) -> dict[str, TensorPlacement]:
    """The place of every tensor that a model with these parameters (path -> shape) has in this table.

    Raises:
      ValueError: the table gives a tensor two places or a place two tensors.
    """
    places: dict[str, TensorPlacement] = {}
    taken: set[tuple[str, int | None, int]] = set()
    for rule in rules:
        target = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>\\d+)", re.escape(rule.target))
        for path, shape in shapes.items():
            if (match := re.fullmatch(target, path)) is None:
                continue
            for name, place in _unfold(rule, path, shape, match.groupdict()):
                spot = (path, place.layer, place.start)
                if name in places or spot in taken:
                    raise ValueError(f"the key table is ambiguous at {name} and {path}")
                places[name] = place
                taken.add(spot)
    return places


def _unfold(rule: Rule, path: str, shape: Shape, numbers: dict[str, str]) -> Iterable[tuple[str, TensorPlacement]]:
    stacked = "{layer}" in rule.source
    layers: Iterable[int | None] = range(shape[0]) if stacked else (None,)
    piece = shape[1:] if stacked else shape
    number, count = rule.part
    if count > 1:
        if piece[-1] % count:
            raise ValueError(f"the last axis of {path} {shape} does not split into {count} parts")
        piece = (*piece[:-1], piece[-1] // count)
    for layer in layers:
        yield (
            rule.source.format(layer=layer, **numbers),
            TensorPlacement(path, layer, rule.layout, piece, number * piece[-1] if piece else 0),
        )


@dataclasses.dataclass(frozen=True)
class Problem:
    """A tensor (or a parameter without one) that keeps a file from filling a model exactly once."""

    kind: Literal["missing", "unexpected", "misshapen", "non-finite", "mixed"]
    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}{self.detail}"


def problems(
    found: Mapping[str, Shape], shapes: Mapping[str, Shape], places: Mapping[str, TensorPlacement]
) -> list[Problem]:
    """What keeps the tensors `found` (name -> shape) from filling the parameters `shapes` (path -> shape)."""
    listed = [Problem("unexpected", name) for name in found if name not in places]
    filled = dict.fromkeys(shapes, 0)
    for name, place in places.items():
        filled[place.path] += math.prod(place.shape)
        if name not in found:
            listed.append(Problem("missing", name, f" (for {place.path})"))
        elif tuple(found[name]) != place.source_shape:
            detail = f": {list(found[name])}, for {place.path} {list(place.source_shape)}"
            listed.append(Problem("misshapen", name, detail))
    for path, shape in shapes.items():
        if filled[path] < math.prod(shape):
            listed.append(Problem("missing", path, ": this layout has no key for it"))
    return listed


def check(listed: Sequence[Problem], where: str, advice: str) -> None:
    """Raise the one error that lists every problem of the file `where`, if there is any, and says what to do."""
    if listed:
        raise errors.UserError(
            f"{where}: {len(listed)} tensors do not fit the model: {'; '.join(map(str, listed))}: {advice}"
        )


def read_block(
    places: Mapping[str, TensorPlacement], index: Index, dtype: np.dtype, read: Read, block: np.ndarray | None = None
) -> np.ndarray:
    """The part `index` of a parameter from the tensors in `places`, which are all of this parameter.

    Where there are tensors missing, `block` holds the values to keep.
    """
    if block is None:
        block = np.empty([span.stop - span.start for span in index], dtype)
    for name, place in places.items():
        place.copy_into(block, index, lambda box, name=name: read(name, box))  # type: ignore[misc]
    return block


def import_tensors(
    tensors: Mapping[str, np.ndarray], abstract: nnx.State, rules: Sequence[Rule]
) -> dict[str, np.ndarray]:
    """Tensors in memory, by original name -> numpy arrays by our parameter path, stacked parameters whole.

    Raises:
      UserError: one message that lists every unexpected, misshapen, non-finite and missing tensor.
    """
    shapes = parameter_shapes(abstract)
    places = plan(shapes, rules)
    listed = problems({name: tensor.shape for name, tensor in tensors.items()}, shapes, places)
    check(
        [*listed, *(Problem("non-finite", name) for name in tensors if not finite(tensors[name]))],
        "the checkpoint",
        "choose another",
    )
    arrays = {}
    for path, shape in shapes.items():
        own = places_of(places, path)
        dtype = np.result_type(*(tensors[name] for name in own))
        arrays[path] = read_block(own, whole(shape), dtype, lambda name, box: tensors[name][box])
    return arrays


def places_of(places: Mapping[str, TensorPlacement], path: str) -> dict[str, TensorPlacement]:
    """The tensors of one parameter."""
    return {name: place for name, place in places.items() if place.path == path}


def copy(target: np.ndarray, value: np.ndarray) -> None:
    """target[...] = value, fast where that transposes."""
    if value.ndim < 2 or value.flags.c_contiguous:
        target[...] = value
        return
    # Narrow bands stay within the cache: five to eight times as fast for elements of two bytes.
    for start in range(0, value.shape[-1], _BAND):
        target[..., start : start + _BAND] = value[..., start : start + _BAND]


def finite(array: np.ndarray) -> bool:
    """True if no element is NaN or infinite."""
    with np.errstate(invalid="ignore"):  # the comparison of a bfloat16 NaN warns
        return bool(np.isfinite(array).all())


def parameter_shapes(abstract: nnx.State) -> dict[str, Shape]:
    """Path -> shape of every parameter of a model's (abstract) state."""
    return {"/".join(map(str, path)): tuple(leaf.shape) for path, leaf in nnx.to_flat_state(abstract)}


def whole(shape: Shape) -> Index:
    """The index of everything."""
    return tuple(slice(0, size) for size in shape)


def to_state(abstract: nnx.State, arrays: Mapping[str, np.ndarray]) -> nnx.State:
    """Arrays by path -> a state with the structure of `abstract`, in the parameters' dtypes."""
    leaves: list[tuple[Any, Any]] = []
    for path, leaf in nnx.to_flat_state(abstract):
        value = arrays["/".join(map(str, path))]
        leaves.append((path, leaf.replace(value.astype(leaf.dtype))))
    return nnx.from_flat_state(leaves)
