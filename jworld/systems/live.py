"""Steering of a running session by held keys, as `jworld.play` and `jworld.envs` do.

A system with the members of `LiveSystem` names its keys and converts those that are held to the control of a session
step. `live_system` refuses a model without them in one sentence.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import ml_collections
import numpy as np

from jworld.evaluation import results
from jworld.systems.base import AnySystem
from jworld.systems.sessions import VideoSession
from jworld.utils import errors

#: Name of the action without keys.
NONE = "none"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """A key of a system.

    Attributes:
      name: name in actions, such as "w" or "right".
      label: what it does, for the player.
      codes: keys of a keyboard that press it, as `KeyboardEvent.code` names them.
      opposite: name of the key that cancels it; "" without.
      axis: axis of a gamepad or touch pad and its sign, such as "x0-" for the first stick to the left; "" without.
      word: its word in recorded episodes, such as "forward"; "" without.
    """

    name: str
    label: str
    codes: tuple[str, ...]
    opposite: str = ""
    axis: str = ""
    word: str = ""


class LiveSession(VideoSession, Protocol):
    """A `VideoSession` whose step has two parts, so that their times can be measured."""

    def advance(self, action: Any) -> np.ndarray:
        """Generate the latents [f, H, W, C] of the next step without decoding them."""

    def decode(self, latents: np.ndarray) -> Iterator[np.ndarray]:
        """Decode the latents of a step, which follow all previous ones; yield its frames in parts uint8 [t, H, W, 3].

        A part is decoded when it is asked for, so that the first frames can be shown before the last ones are decoded.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """Cameras of a step, and the past frames that it was conditioned on.

    Attributes:
      first: index of the first latent of the step.
      w2c: cameras of its latents, world-to-camera [f, 4, 4] float64.
      intrinsics: of its latents, [f, 3, 3] divided by the image size.
      context: sorted indices of the latents that the step was conditioned on.
    """

    first: int
    w2c: np.ndarray
    intrinsics: np.ndarray
    context: list[int]


@runtime_checkable
class ViewedSession(Protocol):
    """A `LiveSession` that has cameras and a memory of past frames."""

    def view(self) -> View:
        """Return the cameras and the context of the latest step."""


@runtime_checkable
class DescribedSession(Protocol):
    """A `LiveSession` whose caption can change while it runs."""

    def describe(self, prompt: str) -> None:
        """Change the caption of the following steps."""


@runtime_checkable
class DelayedSession(Protocol):
    """A `LiveSession` whose frames show a key some steps after it was pressed."""

    @property
    def delay(self) -> int:
        """Steps from a key press to the first frame that shows it, the step of the key press included."""


@runtime_checkable
class LiveSystem(Protocol):
    """Members of a `VideoSystem` whose model can be steered while it runs."""

    @property
    def decodes_apart(self) -> bool:
        """True if a step is generated without the frames of earlier ones, which can be decoded meanwhile."""

    def live_keys(self) -> Sequence[Key]:
        """Return the keys of the model, in the order of their names in actions.

        Raises:
          UserError: this model of the system is not steered.
        """

    def held(self, keys: Sequence[str]) -> results.Action:
        """Return the action of a step during which these keys are held; `keys` are names of `live_keys`.

        The keys do not oppose each other, and are in the order of `live_keys`.
        """


def live_system(system: AnySystem, config: ml_collections.ConfigDict) -> LiveSystem:
    """Return `system` as one that is steered by keys, or raise a `UserError`."""
    if not isinstance(system, LiveSystem):
        raise errors.UserError(
            f"the checkpoint is of the system {config.system!r}, which cannot be steered by keys: give a --checkpoint "
            "of a model that generates videos from actions"
        )
    system.live_keys()
    return system


def effective(keys: Sequence[Key], held: Iterable[str]) -> list[str]:
    """Return the held keys in the order of `keys`, without unknown ones and without pairs that cancel each other."""
    pressed = set(held)
    return [key.name for key in keys if key.name in pressed and key.opposite not in pressed]


def joined(keys: Sequence[str]) -> str:
    """Return the name of an action, such as "w+right", or "none"."""
    return "+".join(keys) or NONE


def split(keys: Sequence[Key], name: str) -> list[str]:
    """Return the keys of an action's name, the inverse of `joined`.

    Raises:
      ValueError: the name has an unknown key, keys that cancel each other, or another order.
    """
    found = [] if name == NONE else name.split("+")
    if effective(keys, found) != found:
        names = ", ".join(key.name for key in keys)
        raise ValueError(
            f"{name[:60]!r} is not an action: expected {NONE}, or keys among {names} in this order, of which none "
            "opposes another, joined by '+'"
        )
    return found


#: Keys of models that are steered by a camera: names are those of pose strings.
CAMERA_KEYS = (
    Key(name="w", label="forward", codes=("KeyW",), opposite="s", axis="y0-", word="forward"),
    Key(name="s", label="backward", codes=("KeyS",), opposite="w", axis="y0+", word="backward"),
    Key(name="d", label="right", codes=("KeyD",), opposite="a", axis="x0+", word="right"),
    Key(name="a", label="left", codes=("KeyA",), opposite="d", axis="x0-", word="left"),
    Key(name="right", label="turn right", codes=("ArrowRight",), opposite="left", axis="x1+", word="yaw_right"),
    Key(name="left", label="turn left", codes=("ArrowLeft",), opposite="right", axis="x1-", word="yaw_left"),
    Key(name="up", label="look up", codes=("ArrowUp",), opposite="down", axis="y1-", word="pitch_up"),
    Key(name="down", label="look down", codes=("ArrowDown",), opposite="up", axis="y1+", word="pitch_down"),
)
