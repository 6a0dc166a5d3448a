"""Statistics of camera motions by action label, and warnings about units, inverses and axes.

A wrong convention is not an error in any single number: cameras stay rigid. It shows in what the motions are compared
with the recorded actions, or with what is usual.
"""

import collections
import dataclasses
from collections.abc import Callable

import numpy as np

from jworld.cameras import actions, poses

#: World units of a usual step per latent: the published data has about 0.08.
USUAL_STEP = (0.05, 0.35)
#: Median steps outside this range are warned about. Below the lower bound no step counts as one in training.
PLAUSIBLE_STEP = (actions.TRAINING_MIN_TRANSLATION, 1.0)
#: Degrees of a turn per latent that no hand-held or driven camera reaches.
IMPLAUSIBLE_TURN = 45.0
#: A single step that is so many times the median one is a jump.
JUMP = 20.0
#: Share of the actions that must agree with the cameras, and the least gain of a better explanation.
_AGREEMENT, _GAIN = 0.8, 0.2
#: Share of backward steps of cameras without recorded actions that is warned about.
_BACKWARD = 0.7
_LEAST = 8  # motions that a warning about a share needs

_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
_BODY = np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
#: What w2c may be instead, and the conversion to what it should be.
EXPLANATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "camera-to-world matrices given as world-to-camera (inverse): invert them": poses.invert_rigid,
    "OpenGL or Blender axes (x right, y up, z backward): multiply w2c from the left by diag(1, -1, -1, 1)": (
        lambda w2c: _OPENGL @ w2c
    ),
    "camera-to-world matrices (inverse) with OpenGL or Blender axes (y up, z backward): multiply them from the right "
    "by diag(1, -1, -1, 1) and invert them": lambda w2c: _OPENGL @ poses.invert_rigid(w2c),
    "axes of a vehicle (x forward, y left, z up): convert them to x right, y down, z forward": lambda w2c: _BODY @ w2c,
    "camera-to-world matrices (inverse) with axes of a vehicle (x forward, y left, z up): convert and invert them": (
        lambda w2c: _BODY @ poses.invert_rigid(w2c)
    ),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """Motions of one action: its name, latents, their share, and the median step (world units) and turn (degrees)."""

    action: str
    latents: int
    share: float
    step: float
    turn: float


class MotionStatistics:
    """Motions of the clips of a data set, collected clip by clip; `recorded` labels do not come from the cameras."""

    def __init__(self) -> None:
        self._labels: list[np.ndarray] = []
        self._steps: list[np.ndarray] = []
        self._turns: list[np.ndarray] = []
        # (explanation, "" for none) -> (motions that agree, motions) with recorded actions.
        self._agreeing: collections.Counter[str] = collections.Counter()
        self._compared = 0
        self._recorded = 0
        self._jumps: list[tuple[str, int, float, float]] = []

    def add(self, name: str, w2c: np.ndarray, labels: np.ndarray, *, recorded: bool) -> None:
        """Add a clip: w2c [F, 4, 4], labels [F]."""
        if len(w2c) < 2:
            return
        motions = poses.steps(w2c)[1:]
        steps = np.linalg.norm(motions[:, :3, 3], axis=-1)
        cosines = (np.trace(motions[:, :3, :3], axis1=1, axis2=2) - 1) / 2
        turns = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
        self._labels.append(np.asarray(labels)[1:])
        self._steps.append(steps)
        self._turns.append(turns)
        largest = int(np.argmax(steps))
        self._jumps.append((name, largest + 1, float(steps[largest]), float(np.median(steps))))
        if recorded:
            self._recorded += len(steps)
            self._compare(w2c, self._labels[-1])

    def _compare(self, w2c: np.ndarray, labels: np.ndarray) -> None:
        """Count, for every explanation, the classes of recorded motion that the cameras share."""
        wanted = np.stack(np.divmod(labels, actions.NUM_CLASSES))
        self._compared += int((wanted > 0).sum())
        for name, convert in {"": lambda w2c: w2c, **EXPLANATIONS}.items():
            # Only directions count here, so that wrong units do not hide the right axes.
            found = actions.labels_from_poses(convert(w2c), min_translation=1e-9)[1:]
            same = np.stack(np.divmod(found, actions.NUM_CLASSES)) == wanted
            self._agreeing[name] += int((same & (wanted > 0)).sum())

    def rows(self) -> list[Row]:
        """Return one row per action, the most frequent first."""
        if not self._labels:
            return []
        labels, steps, turns = map(np.concatenate, (self._labels, self._steps, self._turns))
        rows = []
        for label, count in collections.Counter(labels.tolist()).most_common():
            chosen = labels == label
            rows.append(
                Row(
                    actions.label_name(int(label)),
                    count,
                    count / len(labels),
                    float(np.median(steps[chosen])),
                    float(np.median(turns[chosen])),
                )
            )
        return rows

    def warnings(self) -> list[str]:
        """Return sentences about probable mistakes, with their likely cause."""
        if not self._labels:
            return []
        return [*self._unit_warnings(), *self._turn_warnings(), *(self._action_warnings() or self._backward_warnings())]

    def _unit_warnings(self) -> list[str]:
        labels, steps = np.concatenate(self._labels), np.concatenate(self._steps)
        moving = steps[labels >= actions.NUM_CLASSES]
        if not len(moving):
            # Without recorded actions, steps that are too small count as none.
            moving = steps[steps > 1e-9]
        if not len(moving):
            return []
        median, (low, high) = float(np.median(moving)), USUAL_STEP
        found = f"the median step of a moving camera is {median:.3g} units per latent, usual are {low:g} to {high:g}"
        if median > PLAUSIBLE_STEP[1]:
            return [f"{found}: positions are probably in millimeters or centimeters, divide them"]
        if median < PLAUSIBLE_STEP[0]:
            return [f"{found}, and steps below {PLAUSIBLE_STEP[0]:g} count as none: multiply the positions"]
        jumps = [jump for jump in self._jumps if jump[2] > max(JUMP * max(jump[3], median), PLAUSIBLE_STEP[1])]
        if not jumps:
            return []
        name, latent, step, _ = jumps[0]
        return [
            f"{len(jumps)} clips jump, for example {name} by {step:.3g} units at latent {latent}, where the median "
            f"step is {median:.3g}: poses are of another recording or estimated badly there"
        ]

    def _turn_warnings(self) -> list[str]:
        turns = np.concatenate(self._turns)
        fast = int((turns > IMPLAUSIBLE_TURN).sum())
        if not fast:
            return []
        return [
            f"{fast} of {len(turns)} latents turn by more than {IMPLAUSIBLE_TURN:g} degrees, the most by "
            f"{turns.max():.0f}: frames are missing, or matrices of different conventions are mixed"
        ]

    def _action_warnings(self) -> list[str]:
        if self._compared < _LEAST:
            return []
        shares = {name: count / self._compared for name, count in self._agreeing.items()}
        own = shares.pop("")
        if own >= _AGREEMENT:
            return []
        cause, best = max(shares.items(), key=lambda item: item[1])
        found = f"{own:.0%} of the recorded moves and turns agree with the cameras"
        if best - own < _GAIN:
            return [f"{found}: actions and poses may be of different recordings, frames or conventions"]
        return [f"{found}, and {best:.0%} would if w2c were {cause}"]

    def _backward_warnings(self) -> list[str]:
        if self._recorded:
            return []
        moves = np.concatenate(self._labels) // actions.NUM_CLASSES
        names = [actions.label_name(actions.NUM_CLASSES * int(move)) for move in moves]
        forward, backward = (sum(word in name.split("+") for name in names) for word in ("forward", "backward"))
        if forward + backward < _LEAST or backward < _BACKWARD * (forward + backward):
            return []
        return [
            f"{backward / (forward + backward):.0%} of the moves along the view go backward: usual for OpenGL axes (y "
            "up, z backward) and for camera-to-world matrices given as world-to-camera"
        ]
