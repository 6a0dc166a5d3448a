"""Key tables: the position of every tensor of a PyTorch checkpoint in a model's parameters, in both directions.

A table is a sequence of rules. `plan` expands it for one model to the placement of every tensor. Importing reads a
slice of a parameter from its tensors; exporting takes the tensors from a parameter.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from flax import nnx

from jworld.utils import errors, finite, nnx_types

Shape = tuple[int, ...]
Index = tuple[slice, ...]
_BAND = 16
#: (name of a tensor, index) -> this part of the tensor.
Read = Callable[[str, Index], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Mapping of a PyTorch tensor (the source) to our array (the target).

    Attributes:
      axes: for each axis of the target, the source axes that are merged into it, in order; empty for the same axes.
      inner: sizes of the merged source axes except the first of each group, in the order of `axes`. They do not follow
        from the target's shape.
      halves_swapped: True if the source has the halves of the target's last axis in the other order.
    """

    axes: tuple[tuple[int, ...], ...] = ()
    inner: tuple[int, ...] = ()
    halves_swapped: bool = False

    def source_shape(self, shape: Shape) -> Shape:
        """Return the source's shape for a target of `shape`."""
        if not self.axes:
            return shape
        sizes: dict[int, int] = {}
        inner = iter(self.inner)
        for size, (first, *rest) in zip(shape, self.axes, strict=True):
            sizes |= {axis: next(inner) for axis in rest}
            merged = math.prod(sizes[axis] for axis in rest)
            if size % merged:
                raise ValueError(f"an axis of {size} is not a multiple of the merged sizes {self.inner}")
            sizes[first] = size // merged
        return tuple(sizes[axis] for axis in range(len(sizes)))

    def to_target(self, tensor: np.ndarray) -> np.ndarray:
        """Convert source to target, as a view if possible."""
        return self._swap(self._arrange(tensor))

    def to_source(self, value: np.ndarray) -> np.ndarray:
        """Convert target to source, the inverse of `to_target`."""
        value = self._swap(value)
        if not self.axes:
            return value
        order = [axis for group in self.axes for axis in group]
        sizes = self.source_shape(value.shape)
        return value.reshape([sizes[axis] for axis in order]).transpose(np.argsort(order))

    def read(self, read: Callable[[Index], np.ndarray], shape: Shape, index: Index) -> np.ndarray:
        """Return the part `index` of the target of `shape`; `read` returns parts of the source."""
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
            # A span of a merged axis is within these whole rows of its first source axis.
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
#: Convolution [O, I, l], [O, I, h, w], [O, I, t, h, w] -> spatial axes first, then I, O.
CONV1D = Layout(((2,), (1,), (0,)))
CONV2D = Layout(((2,), (3,), (1,), (0,)))
CONV3D = Layout(((2,), (3,), (4,), (1,), (0,)))
#: Norm weight with trailing axes of 1, [C, 1, 1] and [C, 1, 1, 1] -> [C].
GAMMA2D = Layout(((0, 1, 2),), (1, 1))
GAMMA3D = Layout(((0, 1, 2, 3),), (1, 1, 1))
#: Vector or linear layer with the halves of its outputs exchanged: (scale, shift) -> (shift, scale).
SWAPPED = Layout(halves_swapped=True)
TRANSPOSED_SWAPPED = Layout(((1,), (0,)), halves_swapped=True)


def patch_kernel(patch: Shape) -> Layout:
    """Return the layout of a patch convolution (kernel = stride = `patch`) as a linear layer.

    [O, I, *patch] -> [I * prod(patch), O].
    """
    return Layout(((1, *range(2, 2 + len(patch))), (0,)), patch)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Row of a key table.

    `source` and `target` are templates: `{name}` is a number that is the same on both sides. `{layer}`, only in the
    source, is the index on the leading axis of a stacked parameter.

    Attributes:
      source: name of the tensor, such as `double_blocks.{layer}.img_mod.linear.weight`.
      target: path of the parameter, such as `blocks/image/modulation/linear/kernel`.
      layout: layout of the tensor in the parameter (in one layer of it).
      part: (i, n): the tensor is the i-th of n equal parts of the parameter's last axis, such as q of a fused qkv.
    """

    source: str
    target: str
    layout: Layout = IDENTITY
    part: tuple[int, int] = (0, 1)


@dataclasses.dataclass(frozen=True)
class TensorPlacement:
    """Position of one tensor in a parameter.

    Attributes:
      path: path of the parameter.
      layer: index on the leading axis of a stacked parameter; None without one.
      layout: layout of the tensor.
      shape: shape of the tensor in our layout.
      start: index of its first element on the parameter's last axis.
    """

    path: str
    layer: int | None
    layout: Layout
    shape: Shape
    start: int

    @property
    def source_shape(self) -> Shape:
        return self.layout.source_shape(self.shape)

    def is_whole(self, shape: Shape) -> bool:
        """Return True if the tensor is the whole parameter of this shape, element by element in the same order."""
        return self.layer is None and self.layout == IDENTITY and self.shape == shape

    def take(self, parameter: np.ndarray, first: int = 0) -> np.ndarray:
        """Return the tensor, in its PyTorch layout, from the parameter or, for a stack, its layers from `first` on."""
        value = parameter if self.layer is None else parameter[self.layer - first]
        if self.shape:
            value = value[..., self.start : self.start + self.shape[-1]]
        return self.layout.to_source(value)

    def copy_into(self, block: np.ndarray, index: Index, read: Callable[[Index], np.ndarray]) -> None:
        """Copy this tensor's elements in the part `index` of the parameter to `block`, an array of that part."""
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
    """Return the placement of every tensor of a model with these parameters (path -> shape) by this table.

    Raises:
      ValueError: the table maps a tensor to two positions, or two tensors to one.
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
    """Tensor, or parameter without one, that makes a file differ from a model."""

    kind: Literal["missing", "unexpected", "misshapen", "non-finite", "mixed"]
    name: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.name}{self.detail}"


def problems(
    found: Mapping[str, Shape], shapes: Mapping[str, Shape], places: Mapping[str, TensorPlacement]
) -> list[Problem]:
    """List the differences between the tensors `found` (name -> shape) and the parameters `shapes` (path -> shape)."""
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
    """Raise one `UserError` with all problems of the file `where` and the advice, if there are any."""
    if listed:
        raise errors.UserError(
            f"{where}: {len(listed)} tensors do not fit the model: {'; '.join(map(str, listed))}: {advice}"
        )


def read_block(
    places: Mapping[str, TensorPlacement], index: Index, dtype: np.dtype, read: Read, block: np.ndarray | None = None
) -> np.ndarray:
    """Return the part `index` of a parameter from its tensors, `places`.

    If tensors are missing, `block` has the values to use instead.
    """
    if block is None:
        block = np.empty([span.stop - span.start for span in index], dtype)
    for name, place in places.items():
        place.copy_into(block, index, lambda box, name=name: read(name, box))  # type: ignore[misc]
    return block


def import_tensors(
    tensors: Mapping[str, np.ndarray], abstract: nnx_types.State, rules: Sequence[Rule]
) -> dict[str, np.ndarray]:
    """Convert tensors in memory, by original name, to numpy arrays by our parameter path.

    Raises:
      UserError: one message that lists every unexpected, misshapen, non-finite and missing tensor.
    """
    shapes = parameter_shapes(abstract)
    places = plan(shapes, rules)
    listed = problems({name: tensor.shape for name, tensor in tensors.items()}, shapes, places)
    check(
        [*listed, *(Problem("non-finite", name) for name in tensors if not finite.all_finite(tensors[name]))],
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
    """Return the tensors of one parameter."""
    return {name: place for name, place in places.items() if place.path == path}


def copy(target: np.ndarray, value: np.ndarray) -> None:
    """Assign target[...] = value, fast if the copy transposes."""
    if value.dtype == target.dtype and value.dtype.itemsize == 2:
        # numpy copies elements of types that are not its own one by one.
        value, target = value.view(np.uint16), target.view(np.uint16)
    if value.ndim < 2 or value.flags.c_contiguous:
        target[...] = value
        return
    # Narrow bands stay in the processor's cache: five to eight times as fast for elements of two bytes.
    for start in range(0, value.shape[-1], _BAND):
        target[..., start : start + _BAND] = value[..., start : start + _BAND]


def parameter_shapes(abstract: nnx_types.State) -> dict[str, Shape]:
    """Return path -> shape for every parameter of a model's (abstract) state."""
    return {"/".join(map(str, path)): tuple(leaf.shape) for path, leaf in nnx.to_flat_state(abstract)}


def whole(shape: Shape) -> Index:
    """Return the index of a whole array."""
    return tuple(slice(0, size) for size in shape)


def to_state(abstract: nnx_types.State, arrays: Mapping[str, np.ndarray]) -> nnx_types.State:
    """Make a state with the structure and dtypes of `abstract` from arrays by path."""
    leaves: list[tuple[Any, Any]] = []
    for path, leaf in nnx.to_flat_state(abstract):
        value = arrays["/".join(map(str, path))]
        leaves.append((path, leaf.replace(value.astype(leaf.dtype))))
    return nnx.from_flat_state(leaves)
