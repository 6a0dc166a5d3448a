import pathlib
import time

import golden_cases
import numpy as np
import pytest
from parity_checks import cameras

from jworld.cameras import actions, pose_strings
from jworld.utils.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def test_a_path_has_one_pose_per_latent() -> None:
    path = pose_strings.path(" w-2, right-1.9,, ")
    assert [actions.label_name(label) for label in path.action] == ["none", "forward", "forward", "yaw_right"]
    assert path.w2c.shape == (4, 4, 4)
    assert path.intrinsics.shape == (4, 3, 3)
    np.testing.assert_allclose(path.w2c[2, :3, 3], [0, 0, -2 * pose_strings.PUBLISHED.step])


@pytest.mark.parametrize(
    "item",
    [
        "w",
        "w-x",
        "q-3",
        "w--3",
        "w-3-4",
        "w-",
        "w-nan",
        "w-inf",
        "W-3",
        "w+s-3",
        "w+w-1",
        "left+right-1",
        "w+-1",
        "none+w-1",
        "stay-1",
        "w-1e400",
    ],
)
def test_the_bad_item_and_the_allowed_actions_are_named(item: str) -> None:
    with pytest.raises(UserError) as error:
        pose_strings.parse(f"a-1, {item}, s-2")
    assert f"'{item}'" in str(error.value)
    assert "w, s, d, a, right, left, up, down" in str(error.value)


def test_standing_still_has_a_word() -> None:
    path = pose_strings.path("w-1, none-3, right-1")
    assert [actions.label_name(label) for label in path.action] == ["none", "forward", *["none"] * 3, "yaw_right"]
    np.testing.assert_array_equal(path.w2c[1:5], [path.w2c[1]] * 4)
    assert pose_strings.key_timeline("none-1").tolist() == [[0, 0, 0, 0]] * 5


@pytest.mark.parametrize("text", ["w-1000000", "w-1e300", "w-24999, none-1", ", ".join(["w-1000"] * 25)])
def test_a_path_has_at_most_so_many_latents(text: str) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=r"makes a path of [\d,]+ latents, expected at most 25,000: shorten it"):
        pose_strings.path(text)
    assert time.monotonic() - started < 1
    assert len(pose_strings.parse("w-24999")) == 1


def test_resized_paths_stand_still_or_end_early() -> None:
    path = pose_strings.path("w-2, right-1")
    longer, shorter = pose_strings.resized(path, 6), pose_strings.resized(path, 2)
    np.testing.assert_array_equal(longer.w2c, path.w2c[[0, 1, 2, 3, 3, 3]])
    assert longer.action.tolist() == [*path.action, 0, 0]
    assert longer.intrinsics.shape == (6, 3, 3)
    np.testing.assert_array_equal(shorter.w2c, path.w2c[:2])
    assert shorter.action.tolist() == path.action[:2].tolist()


def test_keys_held_together_add_their_motions() -> None:
    path = pose_strings.path("w+right-2, d+up-1")
    names = [actions.label_name(label) for label in path.action]
    assert names == ["none", "forward+yaw_right", "forward+yaw_right", "right+pitch_up"]
    assert pose_strings.key_timeline("w+right-1").tolist() == [[1, 0, 1, 0]] * 5
    steps = pose_strings.motions("w+right-2, d+up-1", pose_strings.Units(step=0.5, turn=90))
    c2w = pose_strings.trajectory(steps)
    # The camera turns right before each step: along +x, then along -z, then to the right, which is -x.
    np.testing.assert_allclose(c2w[:, :3, 3], [[0, 0, 0], [0.5, 0, 0], [0.5, 0, -0.5], [0, 0, -0.5]], atol=1e-12)
    # Finally it looks up, along -y.
    np.testing.assert_allclose(c2w[3, :3, 2], [0, -1, 0], atol=1e-12)


def test_units_scale_the_path() -> None:
    units = pose_strings.Units(step=0.3, turn=30, focal=(0.5, 0.75))
    path = pose_strings.path("w-1, left-1", units)
    np.testing.assert_allclose(path.w2c[1, :3, 3], [0, 0, -0.3])
    assert np.degrees(np.arccos(path.w2c[2, 0, 0])) == pytest.approx(30)
    np.testing.assert_allclose(path.intrinsics[0], [[0.5, 0, 0.5], [0, 0.75, 0.5], [0, 0, 1]])
    with pytest.raises(ValueError, match="turn: found 0"):
        pose_strings.Units(turn=0)


def test_held_keys_continue_a_path() -> None:
    units = pose_strings.Units(step=0.3, turn=30)
    whole = pose_strings.path("w+right-3, a-4", units)
    first = pose_strings.held("w+right", 4, units, after=None)
    second = pose_strings.held("a", 4, units, after=first.w2c[-1])
    for name in ("w2c", "intrinsics", "action"):
        joined = np.concatenate([getattr(first, name), getattr(second, name)])
        np.testing.assert_allclose(joined, getattr(whole, name), atol=1e-12)
    still = pose_strings.held("none", 2, units, after=second.w2c[-1])
    np.testing.assert_allclose(still.w2c, [second.w2c[-1]] * 2, atol=1e-12)
    assert still.action.tolist() == [0, 0]


@pytest.mark.parametrize("keys", ["", "w-3", "forward", "w+s"])
def test_unknown_keys_are_refused(keys: str) -> None:
    with pytest.raises(UserError, match=r"expected none, or one of w, s, d, a"):
        pose_strings.held(keys, 4, after=None)


def test_key_timeline_gives_frame_0_to_the_first_command() -> None:
    timeline = pose_strings.key_timeline("a-1, down-2")
    assert timeline.tolist() == [[0, 1, 0, 0]] * 5 + [[0, 0, 0, -1]] * 8
    with pytest.raises(UserError, match="whole number"):
        pose_strings.key_timeline("a-1.5")


def test_an_orbit_keeps_its_center_in_view() -> None:
    c2w = pose_strings.trajectory([pose_strings.Motion(third_yaw=0.3)] * 4)
    np.testing.assert_allclose(c2w[:, :3, 3] + c2w[:, :3, 2], [[0, 0, 1]] * 5, atol=1e-12)


def golden_error() -> float:
    return cameras.pose_strings_check(golden_cases.GoldenCase(GOLDEN / "worldplay" / "pose_strings"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("ORBIT_RADIUS", 2.0), ("_about_x", pose_strings._about_y), ("_about_y", pose_strings._about_x)],
)
def test_golden_check_notices_another_convention(name: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pose_strings, name, value)
    assert golden_error() > 1e-2


def test_golden_check_notices_another_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pose_strings.MOTIONS, "w", pose_strings.Motion(forward=0.9))
    assert golden_error() > 1e-2


@pytest.mark.parametrize("threshold", [{"min_translation": 1e-5}, {"min_rotation_degrees": 4.0}])
def test_golden_check_notices_another_threshold(threshold: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    original = actions.labels_from_poses
    monkeypatch.setattr(actions, "labels_from_poses", lambda w2c, **options: original(w2c, **{**options, **threshold}))
    assert golden_error() > 1e-2
