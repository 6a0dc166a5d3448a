"""Driving tokens: as text, and as reductions of the 81 action labels."""

import numpy as np
import pytest

from jworld.cameras import actions, driving
from jworld.utils import errors


def test_text_and_back() -> None:
    tokens = driving.parse("D*3, DR*2,N")
    assert tokens == ("D", "D", "D", "DR", "DR", "N")
    assert driving.named(tokens) == "D*3, DR*2, N"
    assert driving.filled(tokens[:4], 6) == ("D", "D", "D", "DR", "DR", "DR")


@pytest.mark.parametrize("text", ["", "D*0", "X", "D**2", "D,,N", "dr"])
def test_invalid_text_is_refused(text: str) -> None:
    with pytest.raises(errors.UserError, match="expected <token>"):
        driving.parse(text)


@pytest.mark.parametrize(
    ("action", "token"),
    [
        ("none", "N"),
        ("forward", "D"),
        ("forward+yaw_right", "DR"),
        ("backward+yaw_left", "BL"),
        ("yaw_left", "NL"),
        # Dropped: steps to a side and pitch.
        ("right", "N"),
        ("forward+left", "D"),
        ("forward+pitch_up", "D"),
        ("backward+right+pitch_down", "B"),
    ],
)
def test_labels_become_tokens(action: str, token: str) -> None:
    assert driving.from_labels(np.array([actions.label_from_name(action)])) == (token,)


def test_every_token_has_an_action_and_a_mirror_image() -> None:
    for token in driving.TOKENS:
        assert driving.of_label(actions.label_from_name(driving.action_name(token))) == token
    labels = np.arange(actions.NUM_LABELS)
    swapped, _ = actions.swap_left_right(labels, np.eye(4)[None])
    assert driving.mirrored(driving.from_labels(labels)) == driving.from_labels(swapped)
