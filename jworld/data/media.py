"""Readers of the user's images and videos."""

import pathlib

import numpy as np
import PIL.Image
import PIL.ImageOps

from jworld.data.recording import episodes
from jworld.utils import errors


def read_start(path: pathlib.Path, flag: str = "--image") -> np.ndarray:
    """Return an image as uint8 [H, W, 3] or an .mp4 as [T, H, W, 3], of any size; `flag` names it in errors."""
    if path.suffix != ".mp4":
        return read_image(path, flag)
    try:
        return episodes.read_video(path)
    except errors.UserError as error:
        raise errors.UserError(f"{flag} {path} cannot be read as a video: give a PNG, JPEG or MP4 file") from error


def read_image(path: str | pathlib.Path, flag: str = "--image") -> np.ndarray:
    """Return an image file as uint8 [H, W, 3], upright; `flag` names it in errors."""
    try:
        with PIL.Image.open(path) as image:
            return np.asarray(PIL.ImageOps.exif_transpose(image).convert("RGB"))
    except OSError as error:
        raise errors.UserError(f"{flag} {path} cannot be read ({error}): give a PNG or JPEG file") from error
