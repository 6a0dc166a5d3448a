"""Fill a model's parameters from named tensors by a key table: every tensor and every parameter exactly once."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from jworld import errors


@dataclasses.dataclass(frozen=True)
class Rule:
    """One row of a key table.

    Attributes:
      source: regular expression of the tensor's whole name; a group named `layer` is the index in a stacked leaf.
      target: path of the parameter, "/"-joined, with backreferences to the groups of `source`.
      convert: the tensor's layout in PyTorch -> ours.
    """

    source: str
    target: str
    convert: Callable[[np.ndarray], np.ndarray] = lambda tensor: tensor


def transposed(tensor: np.ndarray) -> np.ndarray:
    """nn.Linear weight [out, in] -> kernel [in, out]."""
    return tensor.T


def patch_kernel(tensor: np.ndarray) -> np.ndarray:
    """Convolution with kernel = stride, [out, in, t, h, w] -> the kernel of the equal linear layer, [in*t*h*w, out]."""
    return tensor.reshape(tensor.shape[0], -1).T


def import_tensors(
    tensors: Mapping[str, np.ndarray], abstract: nnx.State, rules: Sequence[Rule]
) -> dict[str, np.ndarray]:
    """Tensors by original name -> numpy arrays by our parameter path, stacked leaves whole.

    Raises:
      UserError: one message that lists every unexpected, repeated, misshapen, non-finite and missing tensor.
    """
    shapes = {"/".join(map(str, path)): leaf.shape for path, leaf in nnx.to_flat_state(abstract)}
    filled: dict[str, np.ndarray] = {}
    seen: dict[str, set[int | None]] = {path: set() for path in shapes}
    problems: list[str] = []
    for name, tensor in tensors.items():
        found = match(name, rules)
        if found is None or found[0] not in shapes:
            problems.append(f"unexpected {name}")
            continue
        path, layer, convert = found
        value = convert(tensor)
        expected = shapes[path] if layer is None else shapes[path][1:]
        if value.shape != expected:
            problems.append(f"misshapen {name}: {tensor.shape}, for {path} {expected}")
        elif layer in seen[path] or (layer is not None and layer >= shapes[path][0]):
            problems.append(f"unexpected {name}: {path} has no place left for it")
        elif not np.isfinite(value).all():
            problems.append(f"non-finite {name}")
        elif layer is None:
            filled[path] = np.ascontiguousarray(value)
        else:
            filled.setdefault(path, np.empty(shapes[path], value.dtype))[layer] = value
        seen[path].add(layer)
    for path, layers in seen.items():
        if not layers:
            problems.append(f"missing {path}")
        elif None not in layers and len(layers) < shapes[path][0]:
            problems.append(f"missing {path} of layers {sorted(set(range(shapes[path][0])) - layers)}")  # type: ignore[type-var]
    if problems:
        raise errors.UserError(f"{len(problems)} tensors do not fit: " + "; ".join(problems))
    return filled


def match(name: str, rules: Sequence[Rule]) -> tuple[str, int | None, Callable[[np.ndarray], np.ndarray]] | None:
    for rule in rules:
        match = re.fullmatch(rule.source, name)
        if match:
            layer = match.groupdict().get("layer")
            return match.expand(rule.target), None if layer is None else int(layer), rule.convert
    return None


def to_state(abstract: nnx.State, arrays: Mapping[str, np.ndarray]) -> nnx.State:
    """Arrays by path -> a state with the structure of `abstract`, in the parameters' dtypes."""
    leaves: list[tuple[Any, Any]] = []
    for path, leaf in nnx.to_flat_state(abstract):
        value = arrays["/".join(map(str, path))]
        leaves.append((path, leaf.replace(value.astype(leaf.dtype))))
    return nnx.from_flat_state(leaves)
