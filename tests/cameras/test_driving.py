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


@pytest.mark.parametrize("text", ["", "D*0", "X", "D**2", "D,,N", "dr", "D,random*3", "random*0", "D*" + "9" * 5000])
def test_invalid_text_is_refused(text: str) -> None:
    with pytest.raises(errors.UserError, match="expected <token>") as caught:
        driving.parse(text)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["D*1000000000", "D*20000,N*6000", "random*30000"])
def test_the_number_of_tokens_is_limited(text: str) -> None:
    with pytest.raises(errors.UserError, match=r"have [\d,]+ or more latents, expected at most 25,000"):
        driving.parse(text)


def test_random_control() -> None:
    """As in the original: from D to a turn and back, each held for two tokens at least and rarely for long."""
    tokens = driving.parse("random:3*400")
    assert tokens == driving.random_control(400, seed=3) != driving.parse("random*400")
    runs = [part.split("*") for part in driving.named(tokens).split(", ")]
    names, lengths = [run[0] for run in runs], [int(run[1]) for run in runs[:-1]]
    assert names[::2] == ["D"] * len(names[::2])
    assert set(names[1::2]) == {"DL", "DR"}
    assert min(lengths) == 2
    assert max(lengths) <= 7
    assert driving.parse("random", random_tokens=5) == driving.random_control(5, seed=0)
    with pytest.raises(errors.UserError, match=r"expected the number of latents, as in 'random\*32'"):
        driving.parse("random")


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
