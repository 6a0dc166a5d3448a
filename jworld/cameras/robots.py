"""Action labels of a robot arm: the motion of its hand from frame to frame.

Source: cosmos-predict2, `data/action_conditioned/action_conditioned_dataset.py` (the Bridge data set) and
`examples/video2world_action.py`.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.spatial.transform

from jworld.cameras import poses
from jworld.utils import files
from jworld.utils.errors import UserError

#: Scale of the Bridge data set: translations and rotations are small numbers, the gripper's state is not.
BRIDGE_SCALE = (20.0, 20.0, 20.0, 20.0, 20.0, 20.0, 1.0)


def relative_actions(
    states: np.ndarray, gripper: np.ndarray, *, scale: Sequence[float] = BRIDGE_SCALE, from_first: bool = False
) -> np.ndarray:
    """Return the action of each frame after the first, in the frame of reference of the previous one.

    Args:
      states: [F, 6] x, y, z, roll, pitch, yaw of the hand; the rotation is Rz(yaw) Ry(pitch) Rx(roll).
      gripper: [F] state of the gripper.
      scale: factors of the seven numbers of an action.
      from_first: relative to the first frame rather than to the previous one.

    Returns:
      [F - 1, 7] float32: translation, rotation (roll, pitch, yaw), gripper.
    """
    rotation = scipy.spatial.transform.Rotation.from_euler("xyz", states[:, 3:6])
    reference = np.zeros(len(states) - 1, int) if from_first else np.arange(len(states) - 1)
    back = rotation[reference].inv()
    translation = back.apply(states[1:, :3] - states[reference, :3])
    turn = (back * rotation[1:]).as_euler("xyz")
    return _scaled(translation, turn, gripper[1:], scale)


def camera_actions(w2c: np.ndarray, *, scale: Sequence[float] = BRIDGE_SCALE) -> np.ndarray:
    """Return the same seven numbers for a camera, with gripper 0: w2c [F, 4, 4] -> [F - 1, 7] float32."""
    motion = poses.steps(w2c)[1:]
    turn = scipy.spatial.transform.Rotation.from_matrix(motion[:, :3, :3]).as_euler("xyz")
    return _scaled(motion[:, :3, 3], turn, np.zeros(len(motion)), scale)


#: Keys of an annotation of the Bridge data set.
ACTION, STATE, GRIPPER = "action", "state", "continuous_gripper_state"
#: Numbers of an action: translation, rotation, gripper.
ACTION_SIZE = 7


@dataclasses.dataclass(frozen=True)
class Motions:
    """Actions of a file, [N, A] float32 scaled as in training, and whether the file is a recording's annotation."""

    values: np.ndarray
    is_annotation: bool


def read_motions(path: pathlib.Path, *, size: int = ACTION_SIZE) -> Motions:
    """Read actions of `size` numbers from a JSON file.

    An annotation of the Bridge data set has `continuous_gripper_state` and `action`, or else `state`. As in the
    original's inference, the first six numbers of an action are scaled by `BRIDGE_SCALE`, and the gripper of a step is
    the continuous state after it. Any other file has only `action`, rows of numbers that are already scaled.

    Raises:
      UserError: the file cannot be read, or its lists do not fit together.
    """
    facts = _read_object(path)
    if GRIPPER not in facts or size != ACTION_SIZE:
        if STATE in facts or ACTION not in facts:
            missing = GRIPPER if STATE in facts else ACTION
            raise UserError(
                f"{path} lacks the key {missing!r}: give an annotation with {ACTION!r} and {GRIPPER!r}, or a file with "
                f"only {ACTION!r}, rows of {size} numbers scaled as in training"
            )
        return Motions(_rows(facts, ACTION, path, exactly=size).astype(np.float32), is_annotation=False)
    gripper = _rows(facts, GRIPPER, path)
    if ACTION not in facts:
        states = _rows(facts, STATE, path, least=6)
        _check_counts(path, STATE, len(states), len(gripper))
        return Motions(relative_actions(states[:, :6], gripper), is_annotation=True)
    rows = _rows(facts, ACTION, path, least=6)
    _check_counts(path, ACTION, len(rows), len(gripper) - 1)
    return Motions(_scaled(rows[:, :3], rows[:, 3:6], gripper[1:], BRIDGE_SCALE), is_annotation=True)


def describe(motions: Motions) -> str:
    """Return how the numbers of a file were read, for the user."""
    if motions.is_annotation:
        return f"translations and rotations times {BRIDGE_SCALE[0]:g}, gripper from {GRIPPER!r}, as in Bridge"
    return f"{ACTION!r} is used as it is, so it must be scaled as in training"


def resized(values: np.ndarray, count: int, *, still: bool = True) -> np.ndarray:
    """Return actions [N, A] as [count, A], cut at their end or continued.

    Motions continue standing `still` with the gripper as it is; otherwise the last action is repeated.
    """
    kept = values[:count]
    if not still:
        return np.concatenate([kept, np.repeat(values[-1:], count - len(kept), axis=0)])
    rest = np.zeros((count - len(kept), ACTION_SIZE), values.dtype)
    rest[:, -1] = values[-1, -1]
    return np.concatenate([kept, rest])


def _read_object(path: pathlib.Path) -> Mapping[str, Any]:
    facts: dict[str, Any] = files.read_json(path, fix=f"give an object with {ACTION!r}")
    return facts


def _rows(
    facts: Mapping[str, Any], key: str, path: pathlib.Path, *, least: int | None = None, exactly: int | None = None
) -> np.ndarray:
    """Return a list of finite numbers [N], or of rows [N, K] with at least or exactly so many numbers."""
    try:
        values = np.asarray(facts[key], np.float64)
    except (KeyError, TypeError, ValueError, OverflowError):
        values = np.empty(0)
    wanted = exactly or least
    fits = values.ndim == 1 if wanted is None else values.ndim == 2 and values.shape[1] >= wanted
    if not fits or not len(values) or (exactly and values.shape[1] != exactly) or not np.isfinite(values).all():
        rows = (
            "a list of finite numbers" if wanted is None else f"rows of {wanted}{'' if exactly else ' or more'} numbers"
        )
        found = (
            "is missing"
            if key not in facts
            else f"has shape {list(values.shape)}"
            if values.size
            else "is something else"
        )
        raise UserError(f"{path}: {key!r} {found}, expected {rows}: correct the file")
    return values


def _check_counts(path: pathlib.Path, key: str, found: int, expected: int) -> None:
    if found != expected:
        raise UserError(
            f"{path}: {key!r} has {found} rows and {GRIPPER!r} belongs to {expected}, expected as many: make both from "
            "the same recording"
        )


def _scaled(translation: np.ndarray, turn: np.ndarray, gripper: np.ndarray, scale: Sequence[float]) -> np.ndarray:
    actions = np.concatenate([translation, turn, gripper.reshape(-1, 1)], axis=1)
    scaled: np.ndarray = actions * np.asarray(scale)
    return scaled.astype(np.float32)
