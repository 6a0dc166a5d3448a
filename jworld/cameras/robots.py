"""Action labels of a robot arm: the motion of its hand from frame to frame.

Source: cosmos-predict2, `data/action_conditioned/action_conditioned_dataset.py` (the Bridge data set).
"""

from collections.abc import Sequence

import numpy as np
import scipy.spatial.transform

from jworld.cameras import poses

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


def _scaled(translation: np.ndarray, turn: np.ndarray, gripper: np.ndarray, scale: Sequence[float]) -> np.ndarray:
    actions = np.concatenate([translation, turn, gripper.reshape(-1, 1)], axis=1)
    scaled: np.ndarray = actions * np.asarray(scale)
    return scaled.astype(np.float32)
