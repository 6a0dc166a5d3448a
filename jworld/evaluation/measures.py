"""Measures of videos part by part, a part being a chunk or a window of a rollout, next to the recorded video."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jworld.evaluation import held_out, image_measures, results

#: Measure of images -> what a plot calls it. What PSNR rewards, blur, the edges show.
IMAGES = {
    "ssim": "SSIM",
    "edges": "edge strength (truth: 1)",
    "seams": "seams of the latent grid (truth: 1)",
    "colors": "distance of colors (gray levels)",
}

#: Least value of what is divided by: a recording without any edge.
_LEAST = 1e-6

Values = dict[str, list[float]]
Spans = Sequence[tuple[int, int]]


def measure(truth: np.ndarray, videos: Mapping[str, np.ndarray], spans: Spans, *, patch: int) -> dict[str, Any]:
    """Measure every part of videos.

    Args:
      truth: recorded frames uint8 [T, H, W, 3].
      videos: frames of the same size, by name.
      spans: first frame and end of every part.
      patch: pixels per latent, in height and in width.

    Returns:
      {"psnr": {name: dB of every part}, "images": {measure of `IMAGES`: {name: value of every part}}}
    """
    parts = [images(truth[a:b], {name: video[a:b] for name, video in videos.items()}, patch=patch) for a, b in spans]
    return {
        "psnr": {name: [held_out.psnr(truth[a:b], video[a:b]) for a, b in spans] for name, video in videos.items()},
        "images": {key: {name: [part[key][name] for part in parts] for name in videos} for key in IMAGES},
    }


def images(truth: np.ndarray, videos: Mapping[str, np.ndarray], *, patch: int) -> dict[str, dict[str, float]]:
    """Measure the images of whole videos: {measure of `IMAGES`: {name: value}}; arguments as in `measure`."""
    edges = max(image_measures.edge_strength(truth), _LEAST)
    seams = max(image_measures.seam_ratio(truth, patch), _LEAST)
    each = videos.items()
    return {
        "ssim": {name: image_measures.ssim(truth, video) for name, video in each},
        "edges": {name: image_measures.edge_strength(video) / edges for name, video in each},
        "seams": {name: image_measures.seam_ratio(video, patch) / seams for name, video in each},
        "colors": {name: image_measures.color_distance(truth, video) for name, video in each},
    }


def image_curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, Values]:
    """Average the measures of images of many clips, part by part."""
    return {
        measure: {
            name: np.mean([row["images"][measure][name] for row in rows], axis=0).tolist()
            for name in rows[0]["images"][measure]
        }
        for measure in IMAGES
    }


def summary(curves: Mapping[str, Values]) -> list[tuple[str, str]]:
    """Return one line for the user about the model's images in the first and in the last part."""
    values = {measure: curves[measure][held_out.MODEL] for measure in IMAGES}
    texts = [
        f"SSIM {values['ssim'][i]:.3f}, edges {values['edges'][i]:.2f} and seams {values['seams'][i]:.2f} times the "
        f"truth's, colors {values['colors'][i]:.1f} gray levels off"
        for i in (0, -1)
    ]
    last = len(values["ssim"])
    return [(f"images in part {number}", text) for number, text in zip((1, last), texts, strict=True)][: min(last, 2)]


def report(rows: Sequence[Mapping[str, Any]], shown: list[results.Comparison]) -> results.Report:
    """Summarize the measurements of clips, part by part.

    Args:
      rows: per clip, the values of `measure` (by name: `held_out.MODEL`, its baselines, and `held_out.AUTOENCODER`,
        the upper bound) and other values to write.
      shown: some of the videos.
    """
    names = list(rows[0]["psnr"])
    curves = {name: np.mean([row["psnr"][name] for row in rows], axis=0).tolist() for name in names}
    means = {name: float(np.mean(values)) for name, values in curves.items()}
    gains = {
        name: means[held_out.MODEL] - means[name]
        for name in names
        if name not in (held_out.MODEL, held_out.AUTOENCODER)
    }
    images = image_curves(rows)
    lines = [(f"gain over {name}", f"{value:+.2f} dB") for name, value in gains.items()]
    numbers = {
        "clips": len(rows),
        "psnr_per_part": curves,
        "psnr": means,
        "gains": gains,
        "images_per_part": images,
        "per_clip": list(rows),
    }
    lines += summary(images)
    return results.Report(numbers=numbers, curves=curves, images=images, summary=lines, rollouts=shown)
