"""Commands: numbers of every frame that steer a model, scaled from their range in a data set to [-1, 1]."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jworld.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Commands:
    """Numbers `columns` of the feature `key`, with their names and the range that becomes [-1, 1]."""

    key: str
    columns: tuple[int, ...]
    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def scale(self, values: np.ndarray) -> np.ndarray:
        """Scale values [T, numbers of the feature] to [T, A]; numbers that never change become 0."""
        low, high = np.array(self.low), np.array(self.high)
        constant = high <= low
        scaled: np.ndarray = 2 * (values[:, list(self.columns)] - low) / np.where(constant, 1.0, high - low) - 1
        scaled[:, constant] = 0.0
        return scaled

    def facts(self) -> dict[str, Any]:
        """Return the entry of a manifest."""
        return {
            "feature": self.key,
            "names": list(self.names),
            "low": list(self.low),
            "high": list(self.high),
        }


def pick(key: str, names: Sequence[str], chosen: str, *, where: object) -> tuple[int, ...]:
    """Return the places of the names in "NAME,NAME", all of them for "".

    Names with parts, such as "arm/0", are also chosen by their first parts.

    Raises:
      UserError: the feature `key` of the data set `where` lacks a name.
    """
    places: list[int] = []
    for wanted in chosen.split(",") if chosen else []:
        found = [place for place, name in enumerate(names) if name == wanted or name.startswith(f"{wanted}/")]
        if not found:
            raise UserError(f"{where}: {key} has no {wanted!r}, expected some of {', '.join(names)}: see --commands")
        places += found
    return tuple(places) if chosen else tuple(range(len(names)))


def check(values: np.ndarray, commands: Commands, *, where: object, episode: str) -> np.ndarray:
    """Scale the values [T, N] of an episode; a `UserError` if they are too few per frame or not finite."""
    if values.shape[1] <= max(commands.columns) or not np.isfinite(values).all():
        raise UserError(
            f"{where}: {commands.key!r} of {episode} has {values.shape[1]} numbers per frame, expected finite ones for "
            f"{', '.join(commands.names)}: correct the file"
        )
    return commands.scale(values)
