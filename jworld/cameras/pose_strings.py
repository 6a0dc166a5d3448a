"""Camera paths as text: "w-3, right-1, d-4" moves forward for 3 latents, turns right for 1, then moves right for 4.

Grammar and motions are those of HY-WorldPlay's `hyvideo/generate.py` and `generate_custom_trajectory.py`. Every item is
`action-duration`, the duration in latents (a fraction is cut off), and the path begins with the identity pose. Not in
the original: keys held together, as in "w+right-3", and standing still, as in "none-3".
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np

from jworld.cameras import actions, lengths, poses
from jworld.utils import ranges
from jworld.utils.errors import UserError

ORBIT_RADIUS = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Motion:
    """Motion of the camera during one latent: translations in world units, angles in radians.

    `third_yaw` orbits around the point ORBIT_RADIUS ahead.
    """

    forward: float = 0.0
    right: float = 0.0
    yaw: float = 0.0
    pitch: float = 0.0
    third_yaw: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Units:
    """Motion per latent of a held key, and the focal lengths (`config.sample.motion`).

    The defaults are those of the published weights; a model trained on another world needs its own.

    Attributes:
      step: world units of a step.
      turn: degrees of a turn.
      focal: focal lengths (fx, fy) in units of the image's width and height.
    """

    step: ranges.Positive = 0.08
    turn: Annotated[float, ranges.Range(0, 360, above=True)] = 3.0
    focal: tuple[
        Annotated[float, ranges.Range(0, 1000, above=True)], Annotated[float, ranges.Range(0, 1000, above=True)]
    ] = (50 / 99, 800 / 891)

    def __post_init__(self) -> None:
        ranges.check(self)


PUBLISHED = Units()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CameraPath:
    """Control of a rollout: w2c [F, 4, 4] float64, intrinsics [F, 3, 3] float64 normalized, action [F] int32."""

    w2c: np.ndarray
    intrinsics: np.ndarray
    action: np.ndarray


# One unit of motion each.
MOTIONS = {
    "w": Motion(forward=1),
    "s": Motion(forward=-1),
    "d": Motion(right=1),
    "a": Motion(right=-1),
    "right": Motion(yaw=1),
    "left": Motion(yaw=-1),
    "up": Motion(pitch=1),
    "down": Motion(pitch=-1),
}
NO_KEY = "none"


def parse(text: str) -> list[tuple[str, float]]:
    """Parse a pose string into (action, duration) pairs.

    Raises:
      UserError: with the first invalid item and the allowed actions, or the path is longer than `lengths.MOST`.
    """
    commands, latents = [], 1
    for item in (part.strip() for part in text.split(",")):
        if not item:
            continue
        action, *durations = (part.strip() for part in item.split("-"))
        try:
            (duration,) = (float(value) for value in durations)
        except ValueError:
            duration = math.nan
        if not (action == NO_KEY or _is_action(action)) or not math.isfinite(duration):
            raise UserError(
                f"pose string item '{item}' is invalid: expected action-duration, such as w-3, with an action "
                f"among {', '.join(MOTIONS)}, several that do not oppose each other joined as in w+right-3, or "
                f"{NO_KEY} to stand still, and the number of latents as duration"
            )
        latents += int(duration)
        if latents > lengths.MOST:
            raise UserError(
                f"pose string item '{item}' makes a path of {latents:,} latents, expected at most {lengths.MOST:,}: "
                "shorten it"
            )
        commands.append((action, duration))
    return commands


def _is_action(action: str) -> bool:
    """Return whether these are valid keys, at most one per direction and its opposite."""
    keys = action.split("+")
    return set(keys) <= MOTIONS.keys() and all(
        sum(getattr(MOTIONS[key], field.name) != 0 for key in keys) <= 1 for field in dataclasses.fields(Motion)
    )


def key_motion(action: str, units: Units = PUBLISHED) -> Motion:
    """Return the motion of keys joined by "+", each as if it were held alone; "none" does not move."""
    parts = [] if action == NO_KEY else [MOTIONS[key] for key in action.split("+")]
    turn = math.radians(units.turn)
    return Motion(
        forward=units.step * sum(motion.forward for motion in parts),
        right=units.step * sum(motion.right for motion in parts),
        yaw=turn * sum(motion.yaw for motion in parts),
        pitch=turn * sum(motion.pitch for motion in parts),
    )


def motions(text: str, units: Units = PUBLISHED) -> list[Motion]:
    """Convert a pose string to one motion per latent after the first."""
    return [key_motion(action, units) for action, duration in parse(text) for _ in range(int(duration))]


def trajectory(steps: Sequence[Motion], start: np.ndarray | None = None) -> np.ndarray:
    """Integrate motions to c2w [1 + len(steps), 4, 4]; the first pose is `start` or the identity.

    A step turns first (yaw, then pitch about the new x), moves along the new axes, and orbits last.
    """
    c2w = np.broadcast_to(np.eye(4) if start is None else start, (len(steps) + 1, 4, 4)).copy()
    rotation, position = c2w[0, :3, :3], c2w[0, :3, 3]
    for index, step in enumerate(steps, start=1):
        rotation = rotation @ _about_y(step.yaw) @ _about_x(step.pitch)
        position = position + rotation @ np.array([step.right, 0, step.forward])
        center = position + ORBIT_RADIUS * rotation[:, 2]
        rotation = rotation @ _about_y(-step.third_yaw)
        position = center - ORBIT_RADIUS * rotation[:, 2]
        c2w[index, :3, :3], c2w[index, :3, 3] = rotation, position
    return c2w


def path_from_c2w(c2w: np.ndarray, *, units: Units = PUBLISHED, third_person: bool = False) -> CameraPath:
    """Return the control of a path of camera-to-world poses [F, 4, 4], with the intrinsics of `units`."""
    w2c = poses.invert_rigid(c2w)
    action = actions.labels_from_poses(
        w2c, min_translation=actions.INFERENCE_MIN_TRANSLATION, third_person=third_person
    )
    intrinsics = poses.intrinsics_matrices(np.array([*units.focal, 0.5, 0.5]))
    return CameraPath(w2c=w2c, intrinsics=np.broadcast_to(intrinsics, (len(w2c), 3, 3)), action=action)


def path(text: str, units: Units = PUBLISHED) -> CameraPath:
    """Convert a pose string to the control of its 1 + sum(durations) latents."""
    return path_from_c2w(trajectory(motions(text, units)), units=units)


def resized(path: CameraPath, latents: int) -> CameraPath:
    """Return the path with `latents` latents: cut at its end, or standing still after it."""
    kept = min(latents, len(path.action))
    extra = latents - kept
    return CameraPath(
        w2c=np.concatenate([path.w2c[:kept], np.repeat(path.w2c[kept - 1 : kept], extra, axis=0)]),
        intrinsics=np.concatenate([path.intrinsics[:kept], np.repeat(path.intrinsics[kept - 1 : kept], extra, axis=0)]),
        action=np.concatenate([path.action[:kept], np.zeros(extra, path.action.dtype)]),
    )


def held(action: str, latents: int, units: Units = PUBLISHED, *, after: np.ndarray | None) -> CameraPath:
    """Continue a player's path: keys such as "w+right", or "none", held for `latents` latents.

    `after` is the w2c [4, 4] of the last latent. It is None at the beginning of a path, whose first latent does not
    move.
    """
    if action != NO_KEY and not _is_action(action):
        raise UserError(
            f"keys '{action}' are invalid: expected {NO_KEY}, or one of {', '.join(MOTIONS)}, or several that "
            "do not oppose each other joined by '+'"
        )
    first = int(after is not None)
    steps = [key_motion(action, units)] * (latents - 1 + first)
    c2w = trajectory(steps, None if after is None else poses.invert_rigid(after))
    whole = path_from_c2w(c2w, units=units)
    return CameraPath(w2c=whole.w2c[first:], intrinsics=whole.intrinsics[first:], action=whole.action[first:])


def key_timeline(text: str) -> np.ndarray:
    """Return the keys to draw on every video frame: [1 + 4 * latents, 4] int, signs of (forward, left, yaw, pitch).

    The first command also covers frame 0. Durations must be whole numbers.
    """
    rows: list[list[int]] = []
    for action, duration in parse(text):
        if not duration.is_integer():
            raise UserError(
                f"pose string item '{action}-{duration:g}' needs a whole number of latents to show its keys"
            )
        motion = key_motion(action)
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
