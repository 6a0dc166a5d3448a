"""The first frame as the published pipelines cut it: scaled to cover a size, then its centre."""

import numpy as np
import PIL.Image

_MAX_RATIO = 4.0


def cover_crop(image: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """uint8 [H, W, 3] -> uint8 [height, width, 3]: resized (Lanczos) without distortion, what sticks out cut away."""
    old_height, old_width, _ = image.shape
    scale = max(width / old_width, height / old_height)
    size = (round(old_width * scale), round(old_height * scale))
    resized = PIL.Image.fromarray(image).resize(size, PIL.Image.Resampling.LANCZOS)
    left, top = round((size[0] - width) / 2), round((size[1] - height) / 2)
    return np.asarray(resized.crop((left, top, left + width, top + height)))


def closest_bucket(width: int, height: int, *, base: int = 640, stride: int = 16) -> tuple[int, int]:
    """(width, height) of the bucket whose aspect ratio is closest to an image's.

    Buckets are multiples of `stride`, at most 4:1, of about base * base pixels; HunyuanVideo-1.5 has base 640 for
    "480p" and shows SigLIP the first frame in this size.
    """
    ratio = height / width
    best = min(_buckets(round((base / stride) ** 2)), key=lambda size: abs(round(size[0] / size[1], 5) - ratio))
    return best[1] * stride, best[0] * stride


def _buckets(area: int) -> list[tuple[int, int]]:
    """(rows, columns) from tall to wide: the last sizes within the area, and those between one and the next."""
    return [
        (rows, columns)
        for rows in range(area, 0, -1)
        for columns in range(max(1, area // (rows + 1)), area // rows + 1)
        if max(rows, columns) <= _MAX_RATIO * min(rows, columns)
    ]
