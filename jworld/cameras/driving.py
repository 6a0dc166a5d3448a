"""The nine driving tokens of The Matrix: gear and turn, one token per latent frame.

Source: The Matrix, `stage2/training/dataset.py` and `journee/utils/control_signal.py`.
"""

import re
from collections.abc import Sequence

import numpy as np

from jworld.cameras import actions
from jworld.utils.errors import UserError

#: Gear D (forward), B (backward) or N (neither), then L or R for a turn of the view.
TOKENS = ("D", "DL", "DR", "B", "BL", "BR", "N", "NL", "NR")
#: Token of no control.
NULL = ""
#: The published control vectors are text features of these sentences.
SENTENCES = {
    "D": "The car is moving straight ahead.",
    "DL": "The car is turning left ahead.",
    "DR": "The car is turning right ahead.",
    "B": "The car is reversing backward.",
    "BL": "The car is turning left while reversing.",
    "BR": "The car is turning right while reversing.",
    "N": "The car is in neutral gear.",
    "NL": "The car is coasting in neutral and turning left.",
    "NR": "The car is coasting in neutral and turning right.",
    NULL: "",
}


def parse(text: str) -> tuple[str, ...]:
    """Parse "D*3,DR*2,N" to ("D", "D", "D", "DR", "DR", "N").

    Raises:
      UserError: an unknown token or an invalid number.
    """
    tokens: list[str] = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*(?:\*\s*([1-9]\d*)\s*)?", word)
        if match is None or match[1] not in TOKENS:
            raise UserError(
                f"actions {text!r}: found {word.strip()!r}, expected <token>*<latents> with a token of "
                f"{', '.join(TOKENS)}, as in 'D*3,DR*2,N'"
            )
        tokens += [match[1]] * int(match[2] or 1)
    return tuple(tokens)


def named(tokens: Sequence[str]) -> str:
    """Write tokens as text, the inverse of `parse`: runs of a token with their lengths."""
    runs: list[tuple[str, int]] = []
    for token in tokens:
        if runs and runs[-1][0] == token:
            runs[-1] = (token, runs[-1][1] + 1)
        else:
            runs.append((token, 1))
    return ", ".join(token if count == 1 else f"{token}*{count}" for token, count in runs)


def of_label(label: int) -> str:
    """Return the token closest to one of the 81 action labels; steps to a side and pitch are dropped."""
    (forward, backward, _, _), (right, left, _, _) = actions.label_to_flags(label)
    gear = "D" if forward else "B" if backward else "N"
    return gear + ("R" if right else "L" if left else "")


#: Token index of every action label.
INDEX_OF_LABEL = np.array([TOKENS.index(of_label(label)) for label in range(actions.NUM_LABELS)], np.int32)


def from_labels(labels: np.ndarray) -> tuple[str, ...]:
    """Convert action labels [F] to tokens."""
    return tuple(TOKENS[i] for i in INDEX_OF_LABEL[labels])


def action_name(token: str) -> str:
    """Return the action that a recorder performs for a token, such as forward+yaw_right."""
    gear = {"D": ["forward"], "B": ["backward"], "N": []}[token[0]]
    return "+".join([*gear, *({"L": "yaw_left", "R": "yaw_right"}[turn] for turn in token[1:])]) or "none"


def mirrored(tokens: Sequence[str]) -> tuple[str, ...]:
    """Swap left and right."""
    swap = {"L": "R", "R": "L"}
    return tuple(token[0] + "".join(swap[turn] for turn in token[1:]) for token in tokens)


def filled(tokens: Sequence[str], count: int) -> tuple[str, ...]:
    """Return `count` tokens; the last one is repeated, as in the original."""
    return (*tokens, *[tokens[-1]] * (count - len(tokens)))[:count]
