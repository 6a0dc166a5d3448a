import pathlib
import time
from typing import Any

import golden_cases
import numpy as np
import pytest
from parity_checks import cameras

from jworld.cameras import memory, pose_strings, poses
from jworld.utils.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
POINTS = memory.monte_carlo_points(4000, seed=0)
TURN = pose_strings.Motion(yaw=np.radians(15))


def turning_path(frames: int) -> np.ndarray:
    """Turn by 15 degrees per latent: every view comes back after 24."""
    motions = [TURN] * (frames - 1)
    return poses.invert_rigid(pose_strings.trajectory(motions))


def test_points_are_fixed_by_the_seed_and_fill_the_ball() -> None:
    np.testing.assert_array_equal(POINTS, memory.monte_carlo_points(4000, seed=0))
    assert not np.array_equal(POINTS, memory.monte_carlo_points(4000, seed=1))
    radii = np.linalg.norm(POINTS, axis=-1)
    assert radii.max() <= memory.PUBLISHED_VIEW.radius
    np.testing.assert_allclose(np.mean(radii < memory.PUBLISHED_VIEW.radius / 2), 1 / 8, atol=0.02)
    np.testing.assert_allclose(POINTS.mean(axis=0), 0, atol=0.3)


def test_overlap_of_equal_opposite_and_distant_views() -> None:
    w2c = poses.invert_rigid(pose_strings.trajectory([TURN] * 12 + [pose_strings.Motion(forward=40.0)]))
    found = memory.overlap(w2c[0], w2c, memory.points_in_view(POINTS))
    np.testing.assert_array_equal(found[[0, 12, 13]], [1, 0, 0])
    assert 0.2 < found[2] < 0.8
    assert memory.overlap(w2c[0], w2c, np.zeros((0, 3))).tolist() == [0] * 14


def test_a_short_past_is_taken_whole() -> None:
    w2c = turning_path(32)
    for current in (0, 4, 20):
        assert memory.select_memory_frames(w2c, current, points=POINTS) == list(range(current))


@pytest.mark.parametrize(("memory_frames", "temporal_context"), [(20, 12), (12, 4), (24, 8), (8, 4)])
def test_an_earlier_equal_view_is_retrieved(memory_frames: int, temporal_context: int) -> None:
    w2c = turning_path(56)
    current = 48
    frames = memory.select_memory_frames(
        w2c, current, points=POINTS, memory_frames=memory_frames, temporal_context=temporal_context
    )
    assert len(frames) == len(set(frames)) == memory_frames
    assert frames == sorted(frames)
    assert frames[:4] == [0, 1, 2, 3]
    assert frames[-temporal_context:] == list(range(current - temporal_context, current))
    if memory_frames > temporal_context + 4:
        assert {24, 25, 26, 27} <= set(frames), "24 frames ago the heading was the same"


def test_equal_views_prefer_the_earlier_chunk() -> None:
    still = np.broadcast_to(np.eye(4), (40, 4, 4))
    assert memory.select_memory_frames(still, 36, points=POINTS)[4:8] == [4, 5, 6, 7]


@pytest.mark.parametrize("sizes", [(20, 10), (18, 12), (12, 12)])
def test_sizes_that_do_not_fit_are_refused(sizes: tuple[int, int]) -> None:
    with pytest.raises(UserError, match="memory_frames"):
        memory.select_memory_frames(
            turning_path(32), 28, points=POINTS, memory_frames=sizes[0], temporal_context=sizes[1]
        )


def test_selection_is_fast_enough_for_a_data_pipeline() -> None:
    points = memory.monte_carlo_points(50_000, seed=0)
    w2c = turning_path(164)
    start = time.perf_counter()
    memory.select_memory_frames(w2c, 160, points=points)
    assert time.perf_counter() - start < 0.5


@pytest.mark.parametrize("changes", [{"fov": (40.0, 35.0)}, {"fov": (60.0, 20.0)}, {"radius": 4.0}])
def test_the_view_decides_what_is_retrieved(changes: dict[str, Any]) -> None:
    motions = [pose_strings.Motion(yaw=np.radians(11), pitch=np.radians(7 * (-1) ** i), forward=0.7) for i in range(47)]
    w2c = poses.invert_rigid(pose_strings.trajectory(motions))
    sizes = {"points": POINTS, "temporal_context": 12, "chunk": 4}
    _, published = memory.candidate_distances(w2c, 44, **sizes)
    starts, other = memory.candidate_distances(w2c, 44, **sizes, view=memory.View(**changes))
    assert not np.allclose(published, other, atol=1e-2)
    selected = memory.select_memory_frames(w2c, 44, points=POINTS, view=memory.View(**changes))
    assert starts[np.argmin(other)] in selected


def test_golden_check_notices_the_inverse_pose(monkeypatch: pytest.MonkeyPatch) -> None:
    original = memory.overlap
    monkeypatch.setattr(
        memory, "overlap", lambda current, *args, **options: original(poses.invert_rigid(current), *args, **options)
    )
    case = golden_cases.GoldenCase(GOLDEN / "worldplay" / "memory_selection_turn_back")
    assert cameras.memory_selection(case) > 1e-2
