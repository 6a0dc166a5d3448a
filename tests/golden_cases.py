"""Golden cases: folders `<root>/<system>/<case>/` with a config.json and safetensors files.

The root is tests/golden, or the folder in the environment variable JWORLD_GOLDEN.
"""

import dataclasses
import fnmatch
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
import recorded_json
import safetensors.numpy

DEFAULT_ROOT = pathlib.Path(__file__).parent / "golden"
DEFAULT_TOLERANCE = 1e-4
#: Values of a config.json that a check need not read, by patterns of their dotted names, and why.
METADATA = {
    "case": "name of the folder",
    "notes": "text for readers",
    "versions.*": "libraries that made the case",
    "seed": "its random numbers are stored",
    "shapes.*": "shapes of the stored arrays",
    "final_outputs.*": "outputs of most interest; all are compared",
}


@dataclasses.dataclass(frozen=True)
class GoldenCase:
    """Recorded run of an original system.

    A check must read every value of the case's JSON files: see `unread`.
    """

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

    @functools.cached_property
    def _documents(self) -> dict[str, Any]:
        return {}

    def json(self, name: str) -> Any:
        """Return a JSON file of the case, which records what is read of it."""
        if name not in self._documents:
            self._documents[name] = recorded_json.record(json.loads((self.path / f"{name}.json").read_text()))
        return self._documents[name]

    def unread(self) -> list[str]:
        """Return the dotted names of all values in the JSON files used that no check has read."""
        names = [name for document in ("config", *self._documents) for name in recorded_json.unread(self.json(document))]
        return [name for name in dict.fromkeys(names) if not any(fnmatch.fnmatch(name, each) for each in METADATA)]

    def _arrays(self, name: str) -> dict[str, np.ndarray]:
        return safetensors.numpy.load_file(self.path / f"{name}.safetensors")


Check = Callable[[GoldenCase], float]


def root() -> pathlib.Path:
    return pathlib.Path(os.environ.get("JWORLD_GOLDEN") or DEFAULT_ROOT)


def discover(folder: pathlib.Path) -> list[GoldenCase]:
    return [GoldenCase(path.parent) for path in sorted(folder.glob("*/*/config.json"))]


def kind_of(name: str, kinds: Iterable[str]) -> str | None:
    """Return the longest of `kinds` ("system/kind") that the case's name ("system/case") starts with."""
    return max((kind for kind in kinds if name.startswith(kind)), key=len, default=None)


def merged(package: ModuleType, attribute: str) -> dict[str, Any]:
    """Merge the dicts `attribute` of all modules of a package; a key in two of them is an error."""
    union: dict[str, Any] = {}
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        entries: Mapping[str, Any] = getattr(importlib.import_module(info.name), attribute, {})
        if twice := union.keys() & entries.keys():
            raise ValueError(f"{info.name} defines {sorted(twice)}, which another module also defines")
        union.update(entries)
    return union


def relative_error(actual: Any, expected: Any) -> float:
    """Return the norm of the difference over the norm of `expected`; if that is zero, the norm of the difference."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    if actual.shape != expected.shape:
        raise AssertionError(f"shape {actual.shape}, expected {expected.shape}")
    difference, scale = np.linalg.norm(actual - expected), np.linalg.norm(expected)
    return float(difference / scale if scale else difference)


def largest_error(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """Return the largest relative error over all names of `expected`; a NaN remains NaN and fails."""
    return float(np.max([relative_error(actual[name], expected[name]) for name in expected]))
