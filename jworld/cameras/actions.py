"""WorldPlay's action labels: 9 * translation class + rotation class, one per latent frame, 0..80.

A class encodes which of four directions are active; the first label of a clip is 0 (none).
Source: HY-WorldPlay, `ar_camera_hunyuan_w_mem_dataset.py` and `hyvideo/generate.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

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
#: Words of a recorded action: letters of `move_action`, and values of `view_action`.
MOVES = {"W": "forward", "S": "backward", "D": "right", "A": "left"}
VIEWS = {"LR": "yaw_right", "LL": "yaw_left", "LU": "pitch_up", "LD": "pitch_down"}
_MOVE_KEY, _VIEW_KEY = "move_action", "view_action"


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


def labels_from_entries(entries: Sequence[Any], num_latents: int) -> np.ndarray:
    """Convert an action JSON to labels, int32 [num_latents].

    Each entry is one video frame, see `label_from_entry`. Latent i uses entry 4i, latent 0 has label 0.

    Raises:
      UserError: there are too few entries, or one of those in use is not valid.
    """
    needed = FRAMES_PER_LATENT * (num_latents - 1) + 1
    if len(entries) < needed:
        raise UserError(f"the action list has {len(entries)} frames; {num_latents} latents need {needed}")
    labels = np.zeros(num_latents, np.int32)
    for latent in range(1, num_latents):
        frame = FRAMES_PER_LATENT * latent
        labels[latent] = label_from_entry(entries[frame], f"frame {frame}")
    return labels


def label_from_entry(entry: Any, where: str) -> int:
    """Convert one entry of an action JSON to a label; `where` begins its errors.

    An entry is an object. `move_action` has letters of `MOVES`, and opposite ones cancel; `view_action` is a key of
    `VIEWS`. Both may also be null, "none", or without a letter. Other keys are not read.

    Raises:
      UserError: the entry is not an object, lacks a key, or has an unknown word.
    """
    if not isinstance(entry, Mapping):
        raise UserError(f"{where} is {entry!r:.60}, expected an object with '{_MOVE_KEY}' and '{_VIEW_KEY}'")
    if missing := [key for key in (_MOVE_KEY, _VIEW_KEY) if key not in entry]:
        raise UserError(f"{where} lacks the key '{missing[0]}', expected '{_MOVE_KEY}' and '{_VIEW_KEY}'")
    w, s, d, a = (letter in _letters(entry[_MOVE_KEY], where) for letter in MOVES)
    view = entry[_VIEW_KEY]
    if not _is_none(view) and (not isinstance(view, str) or view not in VIEWS):
        raise UserError(
            f"{where}: '{_VIEW_KEY}' is {view!r:.60}, expected one of {', '.join(VIEWS)}, or none for no turn"
        )
    turn = VIEWS.get(view) if isinstance(view, str) else None
    return flags_to_label(
        (w and not s, s and not w, d and not a, a and not d), [turn == rotation for rotation in ROTATIONS]
    )


def _is_none(value: Any) -> bool:
    """Return whether a recorded value means no action: null, "none", or a text such as "-" without any letter."""
    return value is None or (isinstance(value, str) and (value.lower() == "none" or not any(map(str.isalnum, value))))


def _letters(move: Any, where: str) -> str:
    """Return the letters of a `move_action`, which is a text or a list of texts."""
    text = "".join(move) if isinstance(move, list) and all(isinstance(part, str) for part in move) else move
    if _is_none(text):
        return ""
    unknown = [] if not isinstance(text, str) else [each for each in text if each.isalnum() and each not in MOVES]
    if unknown or not isinstance(text, str):
        found = f" (found {unknown[0]!r})" if unknown else ""
        hint = ": letters are upper case" if isinstance(text, str) and set(text.upper()) <= {*MOVES, *" +,"} else ""
        raise UserError(f"{where}: '{_MOVE_KEY}' is {move!r:.60}{found}, expected letters of {', '.join(MOVES)}{hint}")
    return text


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
