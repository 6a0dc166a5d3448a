"""Camera paths written as text: "w-3, right-1, d-4" walks 3 latents forward, turns right for 1, then steps right for 4.

Grammar and motions are those of HY-WorldPlay's `hyvideo/generate.py` and `generate_custom_trajectory.py`: every item is
`action-duration`, the duration in latents (a fraction is cut off), and the path begins with the identity pose.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jworld.cameras import actions, poses
from jworld.errors import UserError

STEP = 0.08
TURN = math.radians(3)
ORBIT_RADIUS = 1.0
DEFAULT_INTRINSICS = poses.normalise_intrinsics(
    poses.intrinsics_matrices(np.array([969.6969696969696, 969.6969696969696, 960.0, 540.0]))
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Motion:
    """What the camera does during one latent: translations in world units, angles in radians.

    `third_yaw` orbits around the point ORBIT_RADIUS ahead.
    """

    forward: float = 0.0
    right: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    third_yaw: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraPath:
    """Control of a rollout: w2c [F, 4, 4] float64, intrinsics [F, 3, 3] float64 normalised, action [F] int32."""

    w2c: np.ndarray
    intrinsics: np.ndarray
    action: np.ndarray


MOTIONS = {
    "w": Motion(forward=STEP),
    "s": Motion(forward=-STEP),
    "d": Motion(right=STEP),
    "a": Motion(right=-STEP),
    "right": Motion(yaw=TURN),
    "left": Motion(yaw=-TURN),
    "up": Motion(pitch=TURN),
    "down": Motion(pitch=-TURN),
}


def parse(text: str) -> list[tuple[str, float]]:
    """Pose string -> (action, duration) pairs; a UserError names the first bad item and the allowed ones."""
    commands = []
    for item in (part.strip() for part in text.split(",")):
        if not item:
            continue
        action, *durations = (part.strip() for part in item.split("-"))
        try:
            (duration,) = (float(value) for value in durations)
        except ValueError:
            duration = math.nan
        if action not in MOTIONS or not math.isfinite(duration):
            raise UserError(
                f"pose string item '{item}' is not understood; expected action-duration, such as w-3, with an action "
                f"among {', '.join(MOTIONS)} and the number of latents as duration"
            )
        commands.append((action, duration))
    return commands


def motions(text: str) -> list[Motion]:
    """Pose string -> one motion per latent after the first."""
    return [MOTIONS[action] for action, duration in parse(text) for _ in range(int(duration))]


def trajectory(steps: Sequence[Motion]) -> np.ndarray:
    """Motions -> c2w [1 + len(steps), 4, 4], the first the identity.

    A step turns first (yaw, then pitch about the new x), moves along the new axes, and orbits last.
    """
    rotation, position = np.eye(3), np.zeros(3)
    c2w = np.broadcast_to(np.eye(4), (len(steps) + 1, 4, 4)).copy()
    for index, step in enumerate(steps, start=1):
        rotation = rotation @ _about_y(step.yaw) @ _about_x(step.pitch)
        position = position + rotation @ np.array([step.right, 0, step.forward])
        centre = position + ORBIT_RADIUS * rotation[:, 2]
        rotation = rotation @ _about_y(-step.third_yaw)
        position = centre - ORBIT_RADIUS * rotation[:, 2]
        c2w[index, :3, :3], c2w[index, :3, 3] = rotation, position
    return c2w


def path_from_c2w(c2w: np.ndarray, *, third_person: bool = False) -> CameraPath:
    """The control of a path given by its camera-to-world poses [F, 4, 4], with the default intrinsics."""
    w2c = poses.invert_rigid(c2w)
    action = actions.labels_from_poses(
        w2c, min_translation=actions.INFERENCE_MIN_TRANSLATION, third_person=third_person
    )
    return CameraPath(w2c=w2c, intrinsics=np.broadcast_to(DEFAULT_INTRINSICS, (len(w2c), 3, 3)), action=action)


def path(text: str) -> CameraPath:
    """Pose string -> the control of its 1 + sum(durations) latents."""
    return path_from_c2w(trajectory(motions(text)))


def key_timeline(text: str) -> np.ndarray:
    """The keys to show over every video frame: [1 + 4 * latents, 4] int, signs of (forward, left, yaw, pitch).

    The first command also covers frame 0. Durations must be whole here.
    """
    rows: list[list[int]] = []
    for action, duration in parse(text):
        if not duration.is_integer():
            raise UserError(
                f"pose string item '{action}-{duration:g}' needs a whole number of latents to show its keys"
            )
        motion = MOTIONS[action]
        signs = (motion.forward, -motion.right, motion.yaw, motion.pitch)
        frames = actions.FRAMES_PER_LATENT * int(duration) + (not rows)
        rows += [[int(np.sign(value)) for value in signs]] * frames
    return np.array(rows, np.int64).reshape(-1, 4)


def _about_x(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _about_y(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
