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
    "vae": "name of the original class",
    "model_class": "name of the original class",
    "dataset": "name of the original class",
    "pipeline": "name of the original class",
    "function": "name of the original function",
    "optimizer": "name of the original function",
    "functions": "names of the original functions",
    "trajectory": "name of the stored poses",
    "versions.*": "libraries that made the case",
    "transformers": "library that made the case",
    "vae_config.diffusers": "library that made the case",
    "transformer_config._diffusers_version": "library that made the case",
    "seed": "the random numbers are stored",
    "weight_seed": "the random numbers are stored",
    "chat_template": "its outputs are stored",
    "batches.*.image_sizes_wh.*": "the images are not stored",
    "batches.*.message_contains": "text of an error of the original",
    "pose_keys": "names in a file that is not stored",
    "items.*.dataset_rng_seed": "the random numbers are stored",
    "shapes.*": "shapes of the stored arrays",
    "final_outputs*": "choice among the stored outputs",
    "weights_without_effect_on_final_outputs*": "property of the stored weights",
    "max_abs_diff*": "difference of two stored outputs",
    "min_top2_margin": "difference of two stored outputs",
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
    def diffusers_weights(self) -> dict[str, np.ndarray]:
        """Weights with diffusers' names: stored with them, or a JSON file of the original name of each."""
        if (path := self.path / "weights_diffusers.json").is_file():
            return {name: self.weights[original] for name, original in json.loads(path.read_text()).items()}
        return self._arrays("weights_diffusers")

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
        names = [
            name for document in ("config", *self._documents) for name in recorded_json.unread(self.json(document))
        ]
        return [name for name in dict.fromkeys(names) if not any(fnmatch.fnmatch(name, each) for each in METADATA)]

    def _arrays(self, name: str) -> dict[str, np.ndarray]:
        return safetensors.numpy.load_file(self.path / f"{name}.safetensors")


Check = Callable[[GoldenCase], float]


def require(config: Mapping[str, Any], **values: Any) -> None:
    """Fail unless these values of a config are the only ones that our code supports, or that the stored arrays have.

    A key that the config does not have is not checked. Arrays may differ by the rounding of float32.
    """
    for key, value in values.items():
        if key not in config:
            continue
        found = recorded_json.whole(config[key])
        expected = list(value) if isinstance(value, tuple) else value
        if isinstance(expected, np.ndarray):
            same = np.shape(found) == expected.shape and np.allclose(found, expected, rtol=1e-6, atol=0)
        else:
            same = found == expected
        if not same:
            raise AssertionError(f"config.json: {key} is {found!r}, expected {expected!r}, the only value checked here")


def without_effect(config: Mapping[str, Any], *keys: str) -> None:
    """Read values that the original ignores in what this check compares; the caller says why."""
    for key in keys:
        recorded_json.whole(config.get(key))


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
