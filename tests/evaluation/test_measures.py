"""Measures of videos part by part, and their averages over clips."""

import dataclasses

import numpy as np
import pytest
import scipy.ndimage

from jworld import evaluate
from jworld.evaluation import held_out, image_measures, measures

SPANS = [(1, 5), (5, 9)]


def videos() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    truth = np.random.default_rng(0).integers(0, 256, (9, 24, 32, 3)).astype(np.uint8)
    blurred = truth.copy()
    blurred[5:] = scipy.ndimage.gaussian_filter(truth[5:], (0, 1, 1, 0))
    return truth, {held_out.MODEL: blurred, "inverted": 255 - truth, held_out.AUTOENCODER: truth}


def test_every_part_is_measured_by_itself() -> None:
    truth, found = videos()
    values = measures.measure(truth, found, SPANS, patch=8)
    assert values["images"].keys() == measures.IMAGES.keys()
    for measure, expected in {"ssim": 1, "edges": 1, "seams": 1, "colors": 0}.items():
        assert values["images"][measure][held_out.AUTOENCODER] == pytest.approx([expected] * 2)
        first, second = values["images"][measure][held_out.MODEL]
        assert first == pytest.approx(expected)
        assert measure == "seams" or second != pytest.approx(expected, abs=0.01)
    blurred = image_measures.edge_strength(found[held_out.MODEL][5:]) / image_measures.edge_strength(truth[5:])
    assert values["images"]["edges"][held_out.MODEL][1] == pytest.approx(blurred)
    assert values["images"]["edges"]["inverted"] == pytest.approx([1, 1])
    expected = held_out.psnr(truth[1:5], 255 - truth[1:5])
    assert values["psnr"]["inverted"][0] == pytest.approx(expected)
    assert values["psnr"][held_out.MODEL][0] == held_out.BEST_PSNR


def test_a_report_averages_clips_and_plots_every_measure() -> None:
    truth, found = videos()
    swapped = {**found, held_out.MODEL: truth}
    rows = [measures.measure(truth, each, SPANS, patch=8) for each in (found, swapped)]
    report = measures.report(rows, [])
    edges = [row["images"]["edges"][held_out.MODEL][1] for row in rows]
    assert report.images["edges"][held_out.MODEL][1] == pytest.approx(np.mean(edges))
    assert report.numbers["images_per_part"] == report.images
    assert [name for name, _ in report.summary][-2:] == ["images in part 1", "images in part 2"]
    # Whatever the order of the rows, a name has one color.
    images = {name: dict(reversed(found.items())) for name, found in report.images.items()}
    panels = evaluate.plot(dataclasses.replace(report, images=images)).axes
    colors = [{line.get_label(): line.get_color() for line in panel.lines} for panel in panels if panel.lines]
    assert len(colors) == 1 + len(measures.IMAGES)
    assert all(found == colors[0] for found in colors)
    labels = [panel.get_ylabel() for panel in evaluate.plot(report).axes]
    assert [label for label in labels if label] == ["PSNR (dB)", *measures.IMAGES.values()]
