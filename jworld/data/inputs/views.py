"""Items that several synchronized cameras recorded: their option `--camera`, and their facts for the manifest."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jworld.data.inputs import items
from jworld.utils.errors import UserError

#: Key of the manifest with the cameras of a set, `Views.facts`.
KEY = "views"
_MOST = 64


@dataclasses.dataclass(frozen=True)
class Views:
    """Cameras in the order of a record: their names, and the ids by which a model embeds them."""

    names: tuple[str, ...]
    ids: tuple[int, ...]

    def facts(self) -> dict[str, Any]:
        """Return the entry of the manifest."""
        return {KEY: {"names": list(self.names), "ids": list(self.ids)}}


def parse(text: str) -> Views | None:
    """Return the cameras of "front,left,right" or "front=0,left=5,right=1"; None for at most one.

    Without numbers the ids are 0, 1, 2 and so on.

    Raises:
      UserError: a name or id is missing, wrong, or there twice.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) < 2:
        return None
    pairs = [part.partition("=") for part in parts]
    names, numbers = [name.strip() for name, _, _ in pairs], [number.strip() for _, _, number in pairs]
    named = [bool(equals) for _, equals, _ in pairs]
    numbers = numbers if any(named) else [str(i) for i in range(len(parts))]
    if (
        not all(names)
        or not all(number.isdecimal() and int(number) < _MOST for number in numbers)
        or len(set(names)) < len(names)
        or len(set(map(int, numbers))) < len(names)
    ):
        raise UserError(
            f"--camera is {text!r}, expected different names, all or none with different numbers from 0 to "
            f"{_MOST - 1}, such as front=0,left=5,right=1"
        )
    return Views(tuple(names), tuple(map(int, numbers)))


def together(cameras: Views, parts: Sequence[items.Item]) -> items.Item:
    """Return one item of all cameras from an item of each, in their order.

    Its caption is that of the captioned camera with the smallest id. The first problem of a camera is its own.
    """
    order = sorted(range(len(parts)), key=lambda i: cameras.ids[i])
    caption = next((parts[i].caption for i in order if parts[i].caption.strip()), "")
    problem = next((part.problem for part in parts if part.problem is not None), None)
    return dataclasses.replace(parts[0], caption=caption, problem=problem, views=tuple(parts))
