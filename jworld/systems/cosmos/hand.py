"""Keys of a robot's hand, for models that were trained on its motions, such as those of the Bridge data set."""

from collections.abc import Sequence

import numpy as np

from jworld.cameras import robots
from jworld.systems import live

#: Motion of a held key per frame: meters and radians before the scale of the data set, and the open gripper.
STEP, TURN, OPEN = 0.01, 0.05, 1.0
KEYS = (
    live.Key(name="w", label="hand forward", codes=("KeyW",), opposite="s", axis="y0-"),
    live.Key(name="s", label="hand backward", codes=("KeyS",), opposite="w", axis="y0+"),
    live.Key(name="a", label="hand left", codes=("KeyA",), opposite="d", axis="x0-"),
    live.Key(name="d", label="hand right", codes=("KeyD",), opposite="a", axis="x0+"),
    live.Key(name="e", label="hand up", codes=("KeyE",), opposite="q"),
    live.Key(name="q", label="hand down", codes=("KeyQ",), opposite="e"),
    live.Key(name="up", label="tilt up", codes=("ArrowUp",), opposite="down", axis="y1-"),
    live.Key(name="down", label="tilt down", codes=("ArrowDown",), opposite="up", axis="y1+"),
    live.Key(name="left", label="turn left", codes=("ArrowLeft",), opposite="right", axis="x1-"),
    live.Key(name="right", label="turn right", codes=("ArrowRight",), opposite="left", axis="x1+"),
    live.Key(name="close", label="close the gripper", codes=("Space",)),
)
#: (index in a motion, sign) of every key but the gripper's. In Bridge x is forward, y left and z up.
_PARTS = {
    "w": (0, 1),
    "s": (0, -1),
    "a": (1, 1),
    "d": (1, -1),
    "e": (2, 1),
    "q": (2, -1),
    "up": (4, -1),
    "down": (4, 1),
    "left": (5, 1),
    "right": (5, -1),
}


def motion(keys: Sequence[str]) -> np.ndarray:
    """Return the motion of one frame, [7] float32 scaled as in Bridge: translation, rotation, gripper."""
    values = np.zeros(robots.ACTION_SIZE)
    for key in keys:
        if key in _PARTS:
            index, sign = _PARTS[key]
            values[index] = sign * (STEP if index < 3 else TURN)
    values[-1] = 0.0 if "close" in keys else OPEN
    scaled: np.ndarray = (values * np.asarray(robots.BRIDGE_SCALE)).astype(np.float32)
    return scaled
