import numpy as np
import scipy.spatial.transform

from jworld.cameras import poses


def random_w2c(frames: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    w2c = np.broadcast_to(np.eye(4), (frames, 4, 4)).copy()
    w2c[:, :3, :3] = scipy.spatial.transform.Rotation.random(frames, random_state=seed).as_matrix()
    w2c[:, :3, 3] = rng.normal(size=(frames, 3))
    return w2c


def test_invert_rigid_is_the_matrix_inverse() -> None:
    w2c = random_w2c(5)
    np.testing.assert_allclose(poses.invert_rigid(w2c), np.linalg.inv(w2c), atol=1e-12)


def test_steps_lead_from_frame_to_frame() -> None:
    w2c = random_w2c(5)
    c2w = np.linalg.inv(w2c)
    steps = poses.steps(w2c)
    np.testing.assert_array_equal(steps[0], np.eye(4))
    for i in range(1, 5):
        np.testing.assert_allclose(c2w[i - 1] @ steps[i], c2w[i], atol=1e-12)


def test_relative_to_first_keeps_the_steps() -> None:
    w2c = random_w2c(5)
    centered = poses.relative_to_first(w2c)
    np.testing.assert_allclose(centered[0], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(poses.steps(centered), poses.steps(w2c), atol=1e-12)


def test_intrinsics_are_normalized_by_the_image_size() -> None:
    pixels = poses.intrinsics_matrices(np.array([[960.0, 540.0, 960.0, 540.0]]))
    expected = [[[0.5, 0, 0.5], [0, 0.5, 0.5], [0, 0, 1]]]
    np.testing.assert_allclose(poses.normalize_intrinsics(pixels), expected)


def test_only_rigid_matrices_pass() -> None:
    turned = np.array([[0.0, 0, 1, 3], [0, 1, 0, -2], [-1, 0, 0, 5], [0, 0, 0, 1]])
    mirrored, scaled, projective = turned.copy(), turned.copy(), turned.copy()
    mirrored[0, 2], scaled[1, 1], projective[3, 0] = -1, 1.01, 0.01
    found = poses.are_rigid(np.stack([turned, mirrored, scaled, projective]))
    assert found.tolist() == [True, False, False, False]
