"""Images of rollouts: contact sheets, and videos with the truth above the prediction."""

import math
from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from jworld.data import images
from jworld.evaluation.results import Chunk, Comparison

IMAGE_WIDTH = 112  # minimum width of an image in a sheet, in pixels; the maximum is twice that
VIDEO_WIDTH = 256
FRAMES_PER_CHUNK = 4
CHUNKS_PER_ROW = 4
LINE = 20  # height of a line of text, in pixels
SIDE = 76  # width of the column with the names of the strips, in pixels
GAP, SEAM = 10, 2  # pixels between chunks, between images
BACKGROUND, INK = (24, 24, 28), (235, 235, 235)
FONT = PIL.ImageFont.load_default(13)


def contact_sheet(comparisons: Sequence[Comparison]) -> PIL.Image.Image:
    """Draw comparisons below each other: action and some frames of every chunk, with true frames above if available."""
    rows = []
    for comparison in comparisons:
        if comparison.title:
            rows.append(_text(comparison.title, SIDE + 10 * len(comparison.title)))
        rows += _rows(comparison)
    return PIL.Image.fromarray(_below_each_other(rows))


def video(comparison: Comparison) -> np.ndarray:
    """Make a video uint8 [T, H', W', 3] with truth, if there is one, above prediction, each under a line of text.

    Frames are enlarged to a width of at least 256 pixels.
    """
    truth, prediction = comparison.truth, comparison.prediction
    factor = math.ceil(VIDEO_WIDTH / prediction.shape[2])
    width = factor * prediction.shape[2]
    frames = []
    for chunk in comparison.chunks:
        name = "generated" if chunk.psnr is None else f"predicted: {_decibels(chunk)}"
        above = _text(f"recorded: {chunk.action}", width)
        below = _text(name if truth is not None else f"{name}: {chunk.action}", width)
        for i in range(chunk.start, chunk.stop):
            parts = [] if truth is None else [above, _enlarged(truth[i], factor)]
            frames.append(np.concatenate([*parts, below, _enlarged(prediction[i], factor)]))
    return np.stack(frames)


def _strips(comparison: Comparison) -> dict[str, np.ndarray]:
    """Return the videos to show, by name."""
    if comparison.truth is None:
        return {"generated": comparison.prediction}
    return {"recorded": comparison.truth, "predicted": comparison.prediction}


def _rows(comparison: Comparison) -> list[np.ndarray]:
    """Draw the chunks in rows that wrap, with a gap below each row."""
    strips = _strips(comparison)
    height = len(_scaled(comparison.prediction[0]))
    names = np.concatenate([_text("", SIDE), *(_text(name, SIDE, height) for name in strips)])
    rows = []
    for first in range(0, len(comparison.chunks), CHUNKS_PER_ROW):
        parts = [names]
        for chunk in comparison.chunks[first : first + CHUNKS_PER_ROW]:
            parts += [_block(list(strips.values()), chunk), _text("", GAP, len(names))]
        rows += [np.concatenate(parts, axis=1), _text("", SIDE, GAP)]
    return rows


def _block(videos: Sequence[np.ndarray], chunk: Chunk) -> np.ndarray:
    """Draw one chunk: a line of text above its strips of images."""
    shown = np.linspace(chunk.start, chunk.stop - 1, FRAMES_PER_CHUNK).round().astype(int)
    strips = [_strip(frames[shown]) for frames in videos]
    text = f"frames {chunk.start}-{chunk.stop - 1}: {chunk.action}"
    if chunk.psnr is not None:
        text += f", {_decibels(chunk)}"
    return np.concatenate([_text(text, strips[0].shape[1]), *strips])


def _strip(frames: np.ndarray) -> np.ndarray:
    shown = [_scaled(frame) for frame in frames]
    gap = _text("", SEAM, shown[0].shape[0])
    return np.concatenate([part for image in shown for part in (image, gap)][:-1], axis=1)


def _scaled(frame: np.ndarray) -> np.ndarray:
    """Scale a frame to the width of a sheet's images."""
    height, width = frame.shape[:2]
    if width <= 2 * IMAGE_WIDTH:
        return _enlarged(frame, math.ceil(IMAGE_WIDTH / width))
    return images.resize(frame, width=2 * IMAGE_WIDTH, height=round(height * 2 * IMAGE_WIDTH / width))


def _decibels(chunk: Chunk) -> str:
    return f"{chunk.psnr:.1f} dB"


def _text(text: str, width: int, height: int = LINE) -> np.ndarray:
    """Draw a text at the top left of an image uint8 [height, width, 3]."""
    image = PIL.Image.new("RGB", (width, height), BACKGROUND)
    PIL.ImageDraw.Draw(image).text((4, 2), text, INK, FONT)
    return np.asarray(image)


def _enlarged(frame: np.ndarray, factor: int) -> np.ndarray:
    """Enlarge a frame by repeating pixels, so that no smoothing hides the model's output."""
    return frame.repeat(factor, axis=0).repeat(factor, axis=1)


def _below_each_other(rows: Sequence[np.ndarray]) -> np.ndarray:
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.concatenate([row, _text("", width - row.shape[1], len(row))], axis=1) for row in rows])
