"""The features of a data set of TensorFlow Datasets: what features.json says of the steps of an episode.

Source: tensorflow/datasets 4.9, `core/proto/feature.proto` and `core/features/`.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from jworld.data.inputs import items
from jworld.utils.errors import UserError

FILE = "features.json"
#: The feature with the steps, and the feature of a step whose numbers are the commands by default.
STEPS, ACTION = "steps", "action"
#: Last parts of the names of texts of which the first that is found is the caption.
CAPTIONS = ("language_instruction", "natural_language_instruction", "instruction", "task")
_MOST_NUMBERS = 4096


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A feature without parts: "image", "tensor" or "text", and the shape of one value, -1 for unknown sizes."""

    kind: str
    shape: tuple[int, ...] = ()
    is_plain: bool = True

    @property
    def size(self) -> int:
        """Return the numbers of one value; 0 if it is not a number or a vector of a known size."""
        size = math.prod(self.shape)
        is_vector = self.kind == "tensor" and self.is_plain and len(self.shape) <= 1
        return size if is_vector and 1 <= size <= _MOST_NUMBERS else 0

    @property
    def is_camera(self) -> bool:
        """Return whether it is an image of three colors, and not of depth or a mask."""
        return self.kind == "image" and self.shape[-1:] == (3,)


@dataclasses.dataclass(frozen=True)
class Features:
    """Leaves of a data set by their names with "/" between the parts: those of a step, and those of an episode."""

    path: pathlib.Path
    steps: Mapping[str, Leaf]
    episode: Mapping[str, Leaf]

    def camera(self, wanted: str) -> str:
        """Return the camera: the wanted one, also by its last part alone, or the only one."""
        cameras = [key for key, leaf in self.steps.items() if leaf.is_camera]
        if not cameras:
            raise UserError(f"{self.path} lists no color image among the features of a step: give another data set")
        found = [key for key in cameras if wanted in (key, key.rsplit("/", 1)[-1])] if wanted else cameras
        if len(found) != 1:
            named = f"--camera is {wanted!r}" if wanted else f"the data set has {len(cameras)} cameras"
            raise UserError(f"{self.path.parent}: {named}, give one of {', '.join(cameras)} as --camera")
        return found[0]

    def caption(self) -> str:
        """Return the name of the caption, with "steps/" if each step has one; "" if there is none."""
        texts = {f"{STEPS}/{key}": leaf for key, leaf in self.steps.items()} | dict(self.episode)
        names = [key for key, leaf in texts.items() if leaf.kind == "text"]
        found = (key for last in CAPTIONS for key in names if key.rsplit("/", 1)[-1] == last)
        return next(found, "")

    def vectors(self, key: str) -> dict[str, int]:
        """Return the features of a step that are `key` or parts of it, with the numbers of each.

        Raises:
          UserError: there is none, or one of them is not a vector of numbers.
        """
        parts = {name: leaf for name, leaf in self.steps.items() if name == key or name.startswith(f"{key}/")}
        sizes = {name: leaf.size for name, leaf in parts.items() if leaf.kind == "tensor"}
        if not sizes or not all(sizes.values()) or sum(sizes.values()) > _MOST_NUMBERS:
            fitting = [name for name, leaf in self.steps.items() if leaf.size]
            raise UserError(
                f"{self.path.parent}: --commands is {key!r}, expected the name of numbers of a step, such as "
                f"{', '.join(fitting[:12]) or 'action'}"
            )
        return sizes


def read(folder: pathlib.Path) -> Features:
    """Read features.json of a data set.

    Raises:
      UserError: it is malformed, or the data set has no episodes of steps.
    """
    path = folder / FILE
    top = _parts(items.read_json(path))
    steps: Any = top.get(STEPS)
    for key in ("sequence", "feature"):
        steps = steps.get(key) if isinstance(steps, dict) else None
    leaves = _leaves(_parts(steps))
    if not leaves:
        raise UserError(
            f"{path} lists no feature {STEPS!r} with the features of a step, expected a data set of episodes (RLDS): "
            "give another --format"
        )
    return Features(path, leaves, _leaves({key: entry for key, entry in top.items() if key != STEPS}))


def _parts(entry: Any) -> dict[str, Any]:
    """Return the features of an object, {} if it has none."""
    found = entry.get("featuresDict") if isinstance(entry, dict) else None
    parts = found.get("features") if isinstance(found, dict) else None
    return parts if isinstance(parts, dict) else {}


def _leaves(parts: Mapping[str, Any]) -> dict[str, Leaf]:
    """Return the leaves below some features; sequences within a step are left out, as each step has another length."""
    leaves = {}
    waiting = [(key, entry) for key, entry in parts.items()]
    while waiting:
        key, entry = waiting.pop()
        if below := _parts(entry):
            waiting += [(f"{key}/{name}", part) for name, part in below.items()]
        elif leaf := _leaf(entry):
            leaves[key] = leaf
    return dict(sorted(leaves.items()))


def _leaf(entry: Any) -> Leaf | None:
    for kind in ("image", "tensor", "text"):
        facts = entry.get(kind) if isinstance(entry, dict) else None
        if isinstance(facts, dict):
            shape = facts.get("shape")
            sizes = shape.get("dimensions", []) if isinstance(shape, dict) else []
            # An empty text, or a number below 0, stands for a size that differs.
            known = [int(size) if str(size).isdecimal() and len(str(size)) < 10 else -1 for size in sizes]
            return Leaf(kind, tuple(known), is_plain=facts.get("encoding", "none") == "none")
    return None
