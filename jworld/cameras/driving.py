"""The nine driving tokens of The Matrix: gear and turn, one token per latent frame.

Source: The Matrix, `stage2/training/dataset.py`, `stage2/inference.py` and `journee/utils/control_signal.py`.
"""

import re
import textwrap
from collections.abc import Sequence

import numpy as np

from jworld.cameras import actions, lengths
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


#: Tokens of the random control of the original's programs.
RANDOM_TOKENS = ("D", "DR", "DL")
#: Every random token is held at least this long; then the probability of a change grows by `_CHANGE` per token.
_HELD, _CHANGE = 2, 0.2


def parse(text: str, *, random_tokens: int | None = None) -> tuple[str, ...]:
    """Parse "D*3,DR*2,N" to ("D", "D", "D", "DR", "DR", "N"), or "random*6" to six tokens of `random_control`.

    "random:7*6" draws them with the seed 7. `random_tokens` is the number of tokens of "random" alone; None needs one.

    Raises:
      UserError: an unknown token, an invalid number, or more than `lengths.MOST` tokens.
    """
    if match := re.fullmatch(r"\s*random(?::(\d{1,9}))?\s*(?:\*\s*([1-9]\d{0,9})\s*)?", text):
        count = int(match[2]) if match[2] else random_tokens
        if count is None:
            raise UserError(f"actions {text!r}: expected the number of latents, as in 'random*32'")
        _check_count(count, text)
        return random_control(count, seed=int(match[1] or 0))
    tokens: list[str] = []
    for word in text.split(","):
        match = re.fullmatch(r"\s*(\w+)\s*(?:\*\s*([1-9]\d{0,9})\s*)?", word)
        if match is None or match[1] not in TOKENS:
            raise UserError(
                f"actions {shortened(text)!r}: found {shortened(word.strip())!r}, expected <token>*<latents> with a "
                f"token of {', '.join(TOKENS)}, as in 'D*3,DR*2,N', or random*<latents>"
            )
        count = int(match[2] or 1)
        _check_count(len(tokens) + count, text)
        tokens += [match[1]] * count
    return tuple(tokens)


def _check_count(count: int, text: str) -> None:
    if count > lengths.MOST:
        raise UserError(
            f"actions {shortened(text)!r} have {count:,} or more latents, expected at most {lengths.MOST:,}: shorten "
            "them"
        )


def shortened(text: str) -> str:
    """Return the beginning of a text for an error."""
    return textwrap.shorten(text, 60, placeholder="...") if " " in text else text[:60] + "..." * (len(text) > 60)


def random_control(count: int, *, seed: int) -> tuple[str, ...]:
    """Draw tokens as the original's programs do without a control: mostly straight on, with some turns.

    It begins with D. From D it changes to DR or DL, and from those back to D.
    """
    rng = np.random.default_rng(seed)
    tokens: list[str] = []
    token, held = RANDOM_TOKENS[0], 0
    while len(tokens) < count:
        if held >= _HELD and rng.random() < _CHANGE * (held - _HELD + 1):
            token = RANDOM_TOKENS[int(rng.integers(1, 3))] if token == RANDOM_TOKENS[0] else RANDOM_TOKENS[0]
            held = 0
        tokens.append(token)
        held += 1
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
