"""Measures of images: values of scikit-image, constructed blur, seams and colors."""

import numpy as np
import pytest
import scipy.ndimage

from jworld.evaluation import image_measures as measures


def waves() -> np.ndarray:
    y, x = np.mgrid[:40, :56]
    return np.stack([127 + 80 * np.sin(x / 5 + k) * np.cos(y / 7 - k) for k in range(3)], axis=-1)


# From skimage.metrics.structural_similarity 0.26 with data_range=255, gaussian_weights=True, sigma=1.5 and
# use_sample_covariance=False.
@pytest.mark.parametrize(("noise", "expected"), [(5, 0.9388774366425953), (25, 0.4098917160029611)])
def test_ssim_is_that_of_scikit_image(noise: int, expected: float) -> None:
    truth = waves().clip(0, 255).astype(np.uint8)
    noisy = waves() + noise * np.random.default_rng(noise).standard_normal(truth.shape)
    noisy = noisy.clip(0, 255).astype(np.uint8)
    assert measures.ssim(truth, noisy) == pytest.approx(expected, abs=1e-7)
    assert measures.ssim(truth, truth) == pytest.approx(1)
    # Frames of a video do not mix.
    video, other = np.stack([truth, noisy]), np.stack([noisy, noisy])
    assert measures.ssim(video, other) == pytest.approx((expected + 1) / 2, abs=1e-7)


def test_blur_lowers_edges() -> None:
    sharp = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3)).astype(np.uint8)
    blurred = scipy.ndimage.gaussian_filter(sharp, (0, 1, 1, 0))
    assert measures.edge_strength(blurred) < 0.4 * measures.edge_strength(sharp)
    ramp = np.broadcast_to(np.arange(0, 96, 2, dtype=np.uint8)[None, :, None], (32, 48, 3))
    assert measures.edge_strength(ramp) == pytest.approx(1)  # 2 to the right, 0 down


def test_seams_are_differences_across_the_grid() -> None:
    rng = np.random.default_rng(1)
    noise = rng.integers(100, 120, (4, 32, 64, 3))
    assert measures.seam_ratio(noise.astype(np.uint8), 8) == pytest.approx(1, abs=0.05)
    blocks = np.kron(rng.integers(0, 100, (4, 8)), np.ones((8, 8), int))[None, :, :, None]
    assert measures.seam_ratio((noise + blocks).astype(np.uint8), 8) > 3
    rows = np.kron(rng.integers(0, 100, (4, 1)), np.ones((8, 64), int))[None, :, :, None]
    assert measures.seam_ratio((noise + rows).astype(np.uint8), 8) > 1.5
    # Blocks of another grid do not count.
    assert measures.seam_ratio(np.roll(noise + blocks, 4, axis=(1, 2)).astype(np.uint8), 8) < 1


def test_flat_and_tiny_images_have_measures() -> None:
    flat = np.full((1, 8, 8, 3), 9, np.uint8)
    assert measures.ssim(flat, flat) == 1
    assert measures.seam_ratio(flat, 4) == 1
    blocks = np.kron(np.array([[0, 9], [9, 0]]), np.ones((4, 4), int))[None, :, :, None] * np.ones(3, int)
    assert measures.seam_ratio(blocks.astype(np.uint8), 4) == 1000


def test_color_distance_is_in_gray_levels() -> None:
    gray = np.full((2, 8, 8, 3), 64, np.uint8)
    assert measures.color_distance(gray, gray) == 0
    assert measures.color_distance(gray, gray + np.uint8(16)) == pytest.approx(16)
    redder = gray.copy()
    redder[..., 0] += 32
    assert measures.color_distance(gray, redder) == pytest.approx(32 / 3)
    # Where the pixels are does not matter.
    noise = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    assert measures.color_distance(noise, noise[:, ::-1, ::-1]) == 0
