"""Statistics of camera motions, and warnings about units, inverses and axes."""

import re
from collections.abc import Callable

import numpy as np
import pytest

from jworld.cameras import actions, plausibility, pose_strings, poses

PATH = pose_strings.path("w-3, right-3, w+right-4, d-2, up-3, w-3, left-4, a-2, s-2, w-4")


def statistics(
    change: Callable[[np.ndarray], np.ndarray] = lambda w2c: w2c, *, recorded: bool = True
) -> plausibility.MotionStatistics:
    found = plausibility.MotionStatistics()
    w2c = change(PATH.w2c)
    labels = PATH.action if recorded else actions.labels_from_poses(w2c, min_translation=0.01)
    found.add("walk", w2c, labels, recorded=recorded)
    return found


def test_rows_describe_the_motion_of_every_action() -> None:
    rows = {row.action: row for row in statistics().rows()}
    assert next(iter(rows)) == "forward"
    forward, turn = rows["forward"], rows["yaw_left"]
    assert (forward.latents, turn.latents) == (10, 4)
    assert forward.share == pytest.approx(10 / 30)
    np.testing.assert_allclose([forward.step, forward.turn], [0.08, 0], atol=1e-4)
    np.testing.assert_allclose([turn.step, turn.turn], [0, 3], atol=1e-4)
    assert statistics().warnings() == statistics(recorded=False).warnings() == []
    assert plausibility.MotionStatistics().warnings() == []


@pytest.mark.parametrize("name", plausibility.EXPLANATIONS)
def test_every_explanation_is_found(name: str) -> None:
    """The cameras are disturbed so that the explanation repairs them."""
    repair = plausibility.EXPLANATIONS[name]
    left = repair(np.eye(4)[None])[0]  # the axes, which are multiplied from the left at last
    disturb = np.linalg.inv(left)
    is_inverse = not np.allclose(repair(PATH.w2c), left @ PATH.w2c)
    given = poses.invert_rigid(disturb @ PATH.w2c) if is_inverse else disturb @ PATH.w2c
    np.testing.assert_allclose(repair(given), PATH.w2c, atol=1e-9)
    (warning,) = statistics(lambda w2c: given).warnings()
    assert warning.endswith(f"100% would if w2c were {name}")


@pytest.mark.parametrize(
    ("factor", "words"),
    [(1000.0, "is 80 units per latent, .* millimeters"), (100.0, "is 8 units"), (0.01, r"is 0\.0008 units")],
)
def test_units(factor: float, words: str) -> None:
    unit = np.ones((4, 4))
    unit[:3, 3] = factor
    (warning,) = statistics(lambda w2c: w2c * unit).warnings()

    assert re.search(words, warning)


def test_jumps_and_turns() -> None:
    jump = PATH.w2c.copy()
    jump[20:, 0, 3] += 5.0
    (warning,) = statistics(lambda w2c: jump).warnings()
    assert "1 clips jump, for example walk by" in warning
    assert "at latent 20, where the median step is 0.08" in warning
    turned = PATH.w2c.copy()
    turned[15:] = np.diag([-1.0, 1, -1, 1]) @ turned[15:]
    assert any(
        "turn by more than 45 degrees, the most by 18" in text for text in statistics(lambda w2c: turned).warnings()
    )


def test_actions_of_another_recording() -> None:
    found = plausibility.MotionStatistics()
    found.add("walk", PATH.w2c, np.roll(PATH.action, 11), recorded=True)
    (warning,) = found.warnings()
    assert "actions and poses may be of different recordings" in warning
