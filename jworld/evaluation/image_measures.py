"""Measures of images and videos next to a truth; all of uint8 [..., H, W, 3], numpy on the host.

PSNR rewards blur. These show what it hides: lost edges, visible borders of patches, and colors that drift away.
"""

import numpy as np
import scipy.ndimage

#: Window and constants of SSIM (Wang et al. 2004, "Image quality assessment: from error visibility to structural
#: similarity"): a Gaussian of deviation 1.5, cut at 3.5 deviations.
_SIGMA, _TRUNCATE = 1.5, 3.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
#: Bins of a color's histogram.
_BINS = 32
_MOST_SEAMS = 1000.0


def ssim(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return the mean structural similarity of frames [..., H, W, 3], 1 for equal ones; colors count alike.

    As in the usual implementations, a margin of half a window is left out, or what a small image has of it.
    """
    margin = min(int(_TRUNCATE * _SIGMA + 0.5), (min(truth.shape[-3:-1]) - 1) // 2)
    x, y = (np.asarray(video, np.float64) for video in (truth, prediction))
    deviations = [0.0] * (x.ndim - 3) + [_SIGMA, _SIGMA, 0.0]

    def mean(values: np.ndarray) -> np.ndarray:
        smoothed: np.ndarray = scipy.ndimage.gaussian_filter(values, deviations, truncate=_TRUNCATE)
        return smoothed

    mean_x, mean_y = mean(x), mean(y)
    variance_x, variance_y = mean(x * x) - mean_x**2, mean(y * y) - mean_y**2
    covariance = mean(x * y) - mean_x * mean_y
    values = (2 * mean_x * mean_y + _C1) * (2 * covariance + _C2)
    values = values / ((mean_x**2 + mean_y**2 + _C1) * (variance_x + variance_y + _C2))
    height, width = truth.shape[-3:-1]
    return float(values[..., margin : height - margin, margin : width - margin, :].mean())


def edge_strength(video: np.ndarray) -> float:
    """Return the mean difference of neighboring pixels, in gray levels; blur lowers it and noise raises it."""
    down, right = _differences(video)
    return float((down.mean() + right.mean()) / 2)


def seam_ratio(video: np.ndarray, patch: int) -> float:
    """Return the mean difference of neighboring pixels across borders of patches over that inside patches.

    Borders are those of a grid of `patch` x `patch` pixels. A video that has nothing to do with the grid has about 1,
    one of flat patches is cut off at `_MOST_SEAMS`.
    """
    across, inside = [], []
    down, right = _differences(video)
    for differences in (down, np.swapaxes(right, -2, -1)):
        lines = differences.reshape(-1, *differences.shape[-2:]).mean(axis=(0, 2))
        border = (np.arange(len(lines)) + 1) % patch == 0
        across.append(lines[border])
        inside.append(lines[~border])
    border, rest = float(np.concatenate(across).mean()), float(np.concatenate(inside).mean())
    return min(border / rest, _MOST_SEAMS) if rest else (_MOST_SEAMS if border else 1.0)


def color_distance(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return how far the histogram of each color must move, in gray levels: their mean earth mover's distance."""
    width = 256 // _BINS
    distances = []
    for color in range(3):
        shares = [
            np.bincount(video[..., color].reshape(-1) // width, minlength=_BINS) / video[..., color].size
            for video in (truth, prediction)
        ]
        # In one dimension this distance is the area between the cumulative histograms.
        distances.append(width * np.abs(np.cumsum(shares[0] - shares[1])).sum())
    return float(np.mean(distances))


def _differences(video: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return absolute differences to the pixel below [..., H-1, W] and to the right [..., H, W-1], mean of colors."""
    gray = video.astype(np.float32).mean(axis=-1)
    return np.abs(np.diff(gray, axis=-2)), np.abs(np.diff(gray, axis=-1))
