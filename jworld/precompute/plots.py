"""Plots of a set of records: camera paths from above, frequencies of actions, latents, decoded frames."""

import math
import pathlib
from collections.abc import Mapping

import matplotlib.axes
import matplotlib.collections
import matplotlib.figure
import numpy as np

from jworld.cameras import poses
from jworld.data import records
from jworld.data.records.statistics import Statistics
from jworld.utils import files
from jworld.utils.errors import UserError

CLIPS, THUMBNAIL_CLIPS = 12, 6
COLUMNS = 4
FRAMES = 6
ARROWS = 12
LARGEST_ZOOM = 5
CAMERAS, ACTIONS, LATENTS, THUMBNAILS = "cameras.png", "actions.png", "latents.png", "thumbnails.png"


def draw(
    statistics: Statistics, clips: Mapping[str, records.Record], videos: Mapping[str, Mapping[int, np.ndarray]]
) -> dict[str, matplotlib.figure.Figure]:
    """Draw the plots for which there is data, by file name.

    `clips` are some records of the set, and `videos` are decoded frames uint8 [H, W, 3] by frame number; both by title.
    """
    figures = {}
    paths = {title: record["w2c"] for title, record in clips.items() if "w2c" in record}
    if paths:
        figures[CAMERAS] = draw_cameras(paths)
    if statistics.actions:
        figures[ACTIONS] = draw_actions(statistics.action_names())
    if statistics.latents.count:
        figures[LATENTS] = draw_latents(statistics.latents.mean, statistics.latents.std)
    if videos:
        figures[THUMBNAILS] = draw_thumbnails(videos)
    return figures


def write(directory: pathlib.Path, figures: Mapping[str, matplotlib.figure.Figure]) -> list[pathlib.Path]:
    """Write each figure atomically to a file in `directory`, and return the paths."""
    paths = []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            with files.replacing(directory / name) as temporary:
                figure.savefig(temporary, format="png", dpi=110)
            paths.append(directory / name)
    except OSError as error:
        raise UserError(f"{directory} could not be written ({error}): give another --plot") from error
    return paths


def draw_cameras(paths: Mapping[str, np.ndarray]) -> matplotlib.figure.Figure:
    """Draw the paths of the cameras w2c [F, 4, 4] of each clip from above, in the axes of its first camera."""
    columns = min(COLUMNS, len(paths))
    rows = math.ceil(len(paths) / columns)
    figure = matplotlib.figure.Figure(figsize=(3.2 * columns + 0.8, 3.3 * rows + 0.7), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat[len(paths) :]:
        panel.set_axis_off()
    c2w = {title: poses.invert_rigid(poses.relative_to_first(w2c)) for title, w2c in paths.items()}
    extents = {title: np.ptp(path[:, (0, 2), 3], axis=0).max() for title, path in c2w.items()}
    # Otherwise a camera at rest would be drawn at the scale of its rounding errors.
    least = max(extents.values()) / LARGEST_ZOOM or 1.0
    for panel, (title, path) in zip(panels.flat, c2w.items(), strict=False):
        lines = _draw_path(panel, path, extent=max(extents[title], least))
        panel.set_title(title, fontsize=9)
    for panel in panels[:, 0]:
        panel.set_ylabel("z, forward")
    for column in range(columns):
        panels[(len(paths) - 1 - column) // columns, column].set_xlabel("x, right")
    figure.suptitle("Cameras from above: dot = start, arrows = view, color = time", fontsize=11)
    figure.colorbar(lines, ax=panels, label="share of the clip", shrink=0.5, aspect=30)
    return figure


def _draw_path(panel: matplotlib.axes.Axes, c2w: np.ndarray, *, extent: float) -> matplotlib.collections.LineCollection:
    positions, views = c2w[:, (0, 2), 3], c2w[:, (0, 2), 2]
    shares = np.linspace(0, 1, len(positions))
    segments = np.stack([positions[:-1], positions[1:]], axis=1)
    lines = matplotlib.collections.LineCollection(list(segments), cmap="viridis", linewidths=2, clim=(0, 1))
    lines.set_array(shares[1:])
    panel.add_collection(lines)
    shown = np.unique(np.linspace(0, len(positions) - 1, ARROWS).round().astype(int))
    middle, half = (positions.max(axis=0) + positions.min(axis=0)) / 2, 0.68 * extent
    panel.quiver(
        *positions[shown].T,
        *views[shown].T,
        shares[shown],
        cmap="viridis",
        clim=(0, 1),
        angles="xy",
        scale_units="xy",
        scale=8 / extent,
        width=0.008,
    )
    panel.plot(*positions[0], "o", color="tab:red", markersize=6, zorder=1.5)
    panel.set(xlim=(middle[0] - half, middle[0] + half), ylim=(middle[1] - half, middle[1] + half), aspect="equal")
    panel.grid(alpha=0.3)
    panel.tick_params(labelsize=8)
    return lines


def draw_actions(counts: Mapping[str, int]) -> matplotlib.figure.Figure:
    """Draw the number of latent frames per action, the most frequent on top."""
    names, values = list(counts), list(counts.values())
    figure = matplotlib.figure.Figure(figsize=(8, 1.4 + 0.28 * len(names)), layout="constrained")
    panel = figure.subplots()
    bars = panel.barh(names, values, color=["tab:gray" if name == "none" else "tab:blue" for name in names])
    panel.bar_label(bars, [f"{value:,} ({value / sum(values):.1%})" for value in values], padding=3, fontsize=8)
    panel.invert_yaxis()
    panel.margins(x=0.18, y=0.01)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set(xlabel="latent frames", title=f"Actions of {sum(values):,} latent frames")
    return figure


def draw_latents(mean: np.ndarray, std: np.ndarray) -> matplotlib.figure.Figure:
    """Draw mean [C] and standard deviation [C] per channel, with those of standard normal noise for comparison."""
    figure = matplotlib.figure.Figure(figsize=(10, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    channels = np.arange(len(mean))
    for panel, values, name, expected in ((above, mean, "mean", 0), (below, std, "standard deviation", 1)):
        panel.bar(channels, values, color="tab:blue")
        panel.axhline(expected, color="tab:red", linestyle="--", linewidth=1)
        panel.set_ylabel(name)
        panel.grid(axis="y", alpha=0.3)
    # A fixed minimum range keeps small means visually small.
    above.set_ylim(min(-0.5, 1.1 * mean.min()), max(0.5, 1.1 * mean.max()))
    above.set_title("Latents by channel; dashed: standard noise", fontsize=11)
    below.set_xlabel("channel")
    return figure


def draw_thumbnails(videos: Mapping[str, Mapping[int, np.ndarray]]) -> matplotlib.figure.Figure:
    """Draw frames uint8 [H, W, 3] of clips by frame number, one row per clip."""
    height, width = next(iter(next(iter(videos.values())).values())).shape[:2]
    size = (2 * FRAMES, (2 * height / width + 0.5) * len(videos))
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    strips = figure.subfigures(len(videos), 1, squeeze=False)[:, 0]
    for strip, (title, frames) in zip(strips, videos.items(), strict=True):
        strip.suptitle(title, fontsize=9, x=0.01, ha="left")
        panels = strip.subplots(1, FRAMES)
        for panel in panels:
            panel.set_axis_off()
        for panel, (number, frame) in zip(panels, frames.items(), strict=False):
            panel.imshow(frame, interpolation="nearest")
            panel.set_title(f"frame {number}", fontsize=8, pad=2)
    return figure
