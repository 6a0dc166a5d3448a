"""Golden cases are data: folders `<root>/<system>/<case>/` with a config.json and safetensors files.

The root is tests/golden, or the folder that the environment variable JWORLD_GOLDEN names.
"""

import dataclasses
import functools
import importlib
import json
import os
import pathlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import safetensors.numpy

DEFAULT_ROOT = pathlib.Path(__file__).parent / "golden"
DEFAULT_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class GoldenCase:
    """One recorded run of an original system."""

    path: pathlib.Path

    @property
    def name(self) -> str:
        return f"{self.path.parent.name}/{self.path.name}"

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        return self.json("config")

    @functools.cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        return self._arrays("inputs")

    @functools.cached_property
    def outputs(self) -> dict[str, np.ndarray]:
        return self._arrays("outputs")

    @functools.cached_property
    def weights(self) -> dict[str, np.ndarray]:
        return self._arrays("weights")

    def json(self, name: str) -> Any:
        return json.loads((self.path / f"{name}.json").read_text())

    def _arrays(self, name: str) -> dict[str, np.ndarray]:
        return safetensors.numpy.load_file(self.path / f"{name}.safetensors")


Check = Callable[[GoldenCase], float]


def root() -> pathlib.Path:
    return pathlib.Path(os.environ.get("JWORLD_GOLDEN") or DEFAULT_ROOT)


def discover(folder: pathlib.Path) -> list[GoldenCase]:
    return [GoldenCase(path.parent) for path in sorted(folder.glob("*/*/config.json"))]


def kind_of(name: str, kinds: Iterable[str]) -> str | None:
    """The longest of `kinds` ("system/kind") that the case's name ("system/case") starts with."""
    return max((kind for kind in kinds if name.startswith(kind)), key=len, default=None)


def merged(package: ModuleType, attribute: str) -> dict[str, Any]:
    """The union of the dicts called `attribute` in all modules of a package; a key claimed twice is an error."""
    union: dict[str, Any] = {}
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        entries: Mapping[str, Any] = getattr(importlib.import_module(info.name), attribute, {})
        if twice := union.keys() & entries.keys():
            raise ValueError(f"{info.name} defines {sorted(twice)} again")
        union.update(entries)
    return union


def relative_error(actual: Any, expected: Any) -> float:
    """Norm of the difference over the norm of `expected` (of the difference alone where `expected` is zero)."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {actual.shape}, expected {expected.shape}")
    difference, scale = np.linalg.norm(actual - expected), np.linalg.norm(expected)
    return float(difference / scale if scale else difference)


def largest_error(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """The largest relative error over all names of `expected`; a NaN stays a NaN, and so fails."""
    return float(np.max([relative_error(actual[name], expected[name]) for name in expected]))
