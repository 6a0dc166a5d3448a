import numpy as np
import pytest

from jworld.cameras import actions, pose_strings, poses
from jworld.utils.errors import UserError


def labels(*motions: pose_strings.Motion, **options: object) -> list[int]:
    w2c = poses.invert_rigid(pose_strings.trajectory(motions))
    return actions.labels_from_poses(w2c, **{"min_translation": 0.01, **options}).tolist()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("none", 0),
        ("yaw_right", 1),
        ("yaw_left", 2),
        ("pitch_up", 3),
        ("pitch_down", 4),
        ("forward", 9),
        ("forward+yaw_right", 10),
        ("backward", 18),
        ("right", 27),
        ("left", 36),
        ("forward+right", 45),
    ],
)
def test_names_and_labels_agree_with_the_published_ones(name: str, label: int) -> None:
    assert actions.label_from_name(name) == label
    assert actions.label_name(label) == name


def test_labels_survive_a_round_trip_through_flags_and_names() -> None:
    for label in range(actions.NUM_LABELS):
        assert actions.flags_to_label(*actions.label_to_flags(label)) == label
        assert actions.label_from_name(actions.label_name(label)) == label


@pytest.mark.parametrize("name", ["forward+backward", "yaw_left+yaw_right", "jump", ""])
def test_impossible_names_are_refused(name: str) -> None:
    with pytest.raises(UserError):
        actions.label_from_name(name)


@pytest.mark.parametrize("label", [-1, 81])
def test_labels_out_of_range_are_refused(label: int) -> None:
    with pytest.raises(UserError, match=str(label)):
        actions.label_to_flags(label)


def test_forward_is_plus_z_and_a_right_turn_is_positive_yaw() -> None:
    c2w = np.broadcast_to(np.eye(4), (3, 4, 4)).copy()
    c2w[1:, 2, 3] = 0.1
    angle = np.radians(5)
    c2w[2, :3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    found = actions.labels_from_poses(poses.invert_rigid(c2w), min_translation=0.01)
    assert [actions.label_name(label) for label in found] == ["none", "forward", "yaw_right"]


def test_thresholds_decide_what_counts_as_motion() -> None:
    slow = pose_strings.Motion(forward=0.005)
    assert labels(slow) == [0, 0]
    assert labels(slow, min_translation=actions.INFERENCE_MIN_TRANSLATION) == [0, 9]
    turning = pose_strings.Motion(yaw=np.radians(0.1))
    assert labels(turning) == [0, 1]
    assert labels(turning, min_rotation_degrees=0.2) == [0, 0]


def test_third_person_ignores_the_translation_of_a_turn() -> None:
    step_and_turn = pose_strings.Motion(forward=0.1, yaw=0.05)
    assert labels(step_and_turn) == [0, 10]
    assert labels(step_and_turn, pose_strings.Motion(forward=0.1), third_person=True) == [0, 1, 9]


def test_entries_take_every_fourth_frame_and_opposites_cancel() -> None:
    entries = [{"move_action": "A", "view_action": ""}] * 9
    entries[4] = {"move_action": "WSD", "view_action": "LL"}
    entries[8] = {"move_action": "", "view_action": "LU"}
    assert actions.labels_from_entries(entries, 3).tolist() == [0, 29, 3]
    with pytest.raises(UserError, match="9 frames; 4 latents need 13"):
        actions.labels_from_entries(entries, 4)
    with pytest.raises(UserError, match="view_action"):
        actions.labels_from_entries([{"move_action": "W"}] * 5, 2)


def test_swapped_labels_match_the_mirrored_poses() -> None:
    path = pose_strings.path("w-2, right-2, d-1, up-1, left-1, a-1, s-1")
    swapped, mirrored = actions.swap_left_right(path.action, path.w2c)
    assert [actions.label_name(label) for label in swapped[2:6]] == ["forward", "yaw_left", "yaw_left", "left"]
    np.testing.assert_array_equal(actions.labels_from_poses(mirrored, min_translation=0.0001), swapped)
    again = actions.swap_left_right(swapped, mirrored)
    np.testing.assert_array_equal(again[0], path.action)
    np.testing.assert_array_equal(again[1], path.w2c)
