"""WorldPlay's action labels: 9 * translation class + rotation class, one per latent frame, 0..80.

A class encodes which of four directions are active; the first label of a clip is 0 (none).
Source: HY-WorldPlay, `ar_camera_hunyuan_w_mem_dataset.py` and `hyvideo/generate.py`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.spatial.transform

from jworld.cameras import poses
from jworld.utils.errors import UserError

TRANSLATIONS = ("forward", "backward", "right", "left")
ROTATIONS = ("yaw_right", "yaw_left", "pitch_up", "pitch_down")
NUM_CLASSES = 9
NUM_LABELS = NUM_CLASSES**2

# The threshold of the original is lower in inference than in training.
TRAINING_MIN_TRANSLATION = 0.01
INFERENCE_MIN_TRANSLATION = 0.0001
MIN_ROTATION_DEGREES = 0.05
FRAMES_PER_LATENT = 4

Flags = tuple[bool, bool, bool, bool]

_CLASS_FLAGS: tuple[Flags, ...] = (
    (False, False, False, False),
    (True, False, False, False),
    (False, True, False, False),
    (False, False, True, False),
    (False, False, False, True),
    (True, False, True, False),
    (True, False, False, True),
    (False, True, True, False),
    (False, True, False, True),
)
_CLASS_OF = {flags: index for index, flags in enumerate(_CLASS_FLAGS)}
_VIEW_KEYS = {"LR": "yaw_right", "LL": "yaw_left", "LU": "pitch_up", "LD": "pitch_down"}


def flags_to_label(translation: Sequence[bool], rotation: Sequence[bool]) -> int:
    """Convert flags in the order of TRANSLATIONS and ROTATIONS to a label.

    Raises:
      UserError: opposite directions are active together.
    """
    classes = []
    for flags, names in ((translation, TRANSLATIONS), (rotation, ROTATIONS)):
        key = tuple(bool(flag) for flag in flags)
        if key not in _CLASS_OF:
            found = "+".join(name for name, flag in zip(names, key, strict=True) if flag)
            raise UserError(f"action '{found}' combines opposite directions: use at most one of each pair of {names}")
        classes.append(_CLASS_OF[key])
    return NUM_CLASSES * classes[0] + classes[1]


def label_to_flags(label: int) -> tuple[Flags, Flags]:
    """Convert a label to (translation flags, rotation flags)."""
    if not 0 <= label < NUM_LABELS:
        raise UserError(f"action label {label} is outside 0..{NUM_LABELS - 1}")
    return _CLASS_FLAGS[label // NUM_CLASSES], _CLASS_FLAGS[label % NUM_CLASSES]


def label_name(label: int) -> str:
    """Convert a label to words such as "forward+yaw_right", or "none"."""
    translation, rotation = label_to_flags(label)
    words = zip(TRANSLATIONS + ROTATIONS, translation + rotation, strict=True)
    return "+".join(word for word, flag in words if flag) or "none"


def label_from_name(name: str) -> int:
    """Convert words joined by "+" in any order, or "none", to a label."""
    words = set() if name == "none" else set(name.split("+"))
    if unknown := words - {*TRANSLATIONS, *ROTATIONS}:
        raise UserError(
            f"action '{name}' has the unknown words {sorted(unknown)}, expected words among {TRANSLATIONS + ROTATIONS}"
        )
    return flags_to_label([word in words for word in TRANSLATIONS], [word in words for word in ROTATIONS])


def labels_from_poses(
    w2c: np.ndarray,
    *,
    min_translation: float,
    min_rotation_degrees: float = MIN_ROTATION_DEGREES,
    third_person: bool = False,
) -> np.ndarray:
    """Label the motions between consecutive frames: w2c [F, 4, 4] -> int32 [F].

    A direction counts when the step is longer than `min_translation` and less than 60 degrees away from it.
    `third_person`: a turning camera orbits its character, so its translation is not counted.
    """
    motions = poses.steps(w2c)
    offsets = motions[:, :3, 3]
    lengths = np.linalg.norm(offsets, axis=-1, keepdims=True)
    moving = lengths[:, 0] > min_translation
    directions = np.divide(offsets, lengths, out=np.zeros_like(offsets), where=lengths > 0)
    angles = np.degrees(np.arccos(np.clip(directions, -1, 1)))
    turns = scipy.spatial.transform.Rotation.from_matrix(motions[:, :3, :3]).as_euler("xyz", degrees=True)
    pitch, yaw = turns[:, 0], turns[:, 1]
    if third_person:
        moving &= (np.abs(yaw) < min_rotation_degrees) & (np.abs(pitch) < min_rotation_degrees)
    forward, right = angles[:, 2], angles[:, 0]
    translation = np.stack([forward < 60, forward > 120, right < 60, right > 120], axis=-1) & moving[:, None]
    limit = min_rotation_degrees
    rotation = np.stack([yaw > limit, yaw < -limit, pitch > limit, pitch < -limit], axis=-1)
    return np.array([flags_to_label(*flags) for flags in zip(translation, rotation, strict=True)], np.int32)


def labels_from_entries(entries: Sequence[Mapping[str, str]], num_latents: int) -> np.ndarray:
    """Convert an action JSON to labels, int32 [num_latents].

    Each entry is one video frame with the keys `move_action` (W, S, A, D) and `view_action`. Latent i uses entry 4i,
    latent 0 has label 0; opposite letters cancel.
    """
    needed = FRAMES_PER_LATENT * (num_latents - 1) + 1
    if len(entries) < needed:
        raise UserError(f"the action list has {len(entries)} frames; {num_latents} latents need {needed}")
    labels = np.zeros(num_latents, np.int32)
    for latent in range(1, num_latents):
        entry = entries[FRAMES_PER_LATENT * latent]
        if missing := {"move_action", "view_action"} - entry.keys():
            raise UserError(f"frame {FRAMES_PER_LATENT * latent} of the action list lacks the keys {sorted(missing)}")
        w, s, d, a = (letter in entry["move_action"] for letter in "WSDA")
        view = _VIEW_KEYS.get(entry["view_action"])
        labels[latent] = flags_to_label(
            (w and not s, s and not w, d and not a, a and not d), [view == r for r in ROTATIONS]
        )
    return labels


def swap_left_right(labels: np.ndarray, w2c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror the control: swap left and right in the labels, reflect poses as M w2c M with M = diag(-1,1,1,1).

    labels [...], w2c [..., 4, 4] -> the same shapes and dtypes.
    """
    table = np.empty(NUM_LABELS, labels.dtype)
    for label in range(NUM_LABELS):
        (forward, backward, right, left), (yaw_right, yaw_left, up, down) = label_to_flags(label)
        table[label] = flags_to_label((forward, backward, left, right), (yaw_left, yaw_right, up, down))
    mirror = np.diag([-1, 1, 1, 1]).astype(w2c.dtype)
    return table[labels], mirror @ w2c @ mirror
