"""The nearest earlier camera, on cameras set by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from hand_made import camera

from jworld.cameras import nearest


def test_angle_and_distance_are_compared_in_units_of_the_view() -> None:
    """The view is 60 degrees wide and 8 deep: 6 degrees are as far as 0.8."""
    known = np.stack([camera(yaw=90), camera(x=0.7), camera(yaw=6)])
    index, closeness = nearest.nearest(camera()[None], known, np.ones(3, bool))
    assert index.tolist() == [1]
    np.testing.assert_allclose(closeness, np.exp(-0.7 / 8 / 0.2), rtol=1e-4)
    index, closeness = nearest.nearest(camera(yaw=1)[None], known, np.ones(3, bool))
    assert index.tolist() == [2]
    np.testing.assert_allclose(closeness, np.exp(-5 / 60 / 0.2), rtol=1e-4)


def test_the_same_camera_has_closeness_one_and_the_latest_wins() -> None:
    known = np.stack([camera(x=3, yaw=170), camera(), camera(x=3, yaw=170)])
    index, closeness = nearest.nearest(known, known, np.ones(3, bool))
    np.testing.assert_array_equal(index, [2, 1, 2])
    np.testing.assert_allclose(closeness, 1, atol=1e-4)


def test_the_world_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    path = np.stack([camera(x=float(x), yaw=float(yaw)) for x, yaw in rng.normal(size=(6, 2)) * (1, 40)])
    other = (path @ camera(x=2, yaw=33)).astype(np.float32)
    expected, found = (nearest.nearest(x[:2], x[2:], np.ones(4, bool)) for x in (path, other))
    np.testing.assert_array_equal(expected[0], found[0])
    np.testing.assert_allclose(expected[1], found[1], rtol=1e-3)


@pytest.mark.parametrize(("valid", "index", "closeness"), [([False, True], 1, True), ([False, False], None, False)])
def test_only_valid_cameras_count(valid: list[bool], index: int | None, closeness: bool) -> None:
    known = jnp.stack([camera(), camera(x=1)])
    found, value = nearest.nearest(camera()[None], known, jnp.asarray(valid))
    assert (value > 0) == closeness
    if index is not None:
        assert found.tolist() == [index]
