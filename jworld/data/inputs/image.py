"""The reader of image files and animated images, for all commands.

Images are shown upright by their EXIF orientation. Transparent pixels are shown over black. Images with 16 bits per
channel and images of numbers from 0 to 1 are scaled to 8 bits.
"""

import io
import pathlib
import struct
import warnings
from collections.abc import Generator

import numpy as np
import PIL.Image
import PIL.ImageOps

from jworld.utils import files, limits, placeholders
from jworld.utils.errors import UserError, one_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
#: Suffixes of animated images. A WebP or PNG file may also be a still image.
ANIMATED_SUFFIXES = (".gif",)

#: Pillow's formats whose further images are frames in time, and not pages or previews.
_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
#: Seconds of a frame without a duration, as browsers show it.
_FRAME_SECONDS = 0.1
#: Exceptions of Pillow for absent, foreign or damaged files.
BROKEN = (
    *(OSError, SyntaxError, ValueError, KeyError, IndexError, TypeError, EOFError, struct.error),
    *(PIL.Image.DecompressionBombError, MemoryError),
)


# Larger images are refused by `open_image`; Pillow itself only warns about some of them.
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)


def open_image(source: str | pathlib.Path | bytes) -> PIL.Image.Image:
    """Open an image file, or the bytes of one, within the limits; nothing but its header is read.

    Raises:
      one of `BROKEN`: it is absent, damaged, or too large.
    """
    if isinstance(source, bytes) and len(source) > limits.IMAGE_BYTES:
        raise ValueError(f"it has {len(source):,} bytes, at most {limits.IMAGE_BYTES:,} are read")
    if not isinstance(source, bytes):
        files.refuse_devices(pathlib.Path(source))
    image = PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    width, height = image.size
    if width * height > limits.IMAGE_PIXELS:
        image.close()
        raise ValueError(f"it has {width}x{height} pixels, at most {limits.IMAGE_PIXELS:,} are read")
    return image


def to_rgb(image: PIL.Image.Image) -> np.ndarray:
    """Convert an opened image of any mode to uint8 [H, W, 3], see the module.

    Raises:
      ValueError: its values have no known scale, or are not finite.
    """
    upright = PIL.ImageOps.exif_transpose(image)
    if upright.mode in ("F", "I") or upright.mode.startswith("I;"):
        gray = _to_bytes(np.asarray(upright), integers=upright.mode != "F", wide=upright.mode.startswith("I;"))
        return np.repeat(gray[..., None], 3, axis=-1)
    if upright.has_transparency_data:
        rgba = np.asarray(upright.convert("RGBA"), np.uint16)
        # Products fit 16 bits.
        over_black: np.ndarray = (rgba[..., :3] * rgba[..., 3:] + 127) // 255
        return over_black.astype(np.uint8)
    return np.asarray(upright.convert("RGB"))


def _to_bytes(values: np.ndarray, *, integers: bool, wide: bool) -> np.ndarray:
    """Scale gray values [H, W] to uint8.

    Values up to 1 are shares, values up to 255 are 8 bits and larger ones 16 bits. `wide` values always have 16 bits,
    and integers are never shares.
    """
    numbers = values.astype(np.float64)
    low, high = (float(numbers.min()), float(numbers.max())) if numbers.size else (0.0, 0.0)
    if not np.isfinite(numbers).all() or low < 0 or high > 65535:
        raise ValueError(
            f"its values go from {low:g} to {high:g}, expected 0 to 1, 0 to 255 or 0 to 65535: save it with 8 bits"
        )
    if wide or high > 255:
        numbers = numbers / 257
    elif not integers and high <= 1:
        numbers = numbers * 255
    return np.rint(numbers).astype(np.uint8)


def read(path: pathlib.Path) -> np.ndarray:
    """Return an image file as uint8 [H, W, 3]; of an animated image or of several pages the first.

    Raises:
      UserError: the file is absent, damaged, or not an image.
    """
    try:
        with open_image(path) as image:
            return to_rgb(image)
    except BROKEN as error:
        raise UserError(f"{path} {_problem(path, error)}") from error


def is_animated(path: pathlib.Path) -> bool:
    """Return whether a file is an image with several frames in time."""
    try:
        with open_image(path) as image:
            return image.format in _ANIMATED and getattr(image, "n_frames", 1) > 1
    except BROKEN:
        return False


def is_image(path: pathlib.Path) -> bool:
    """Return whether the content of a file begins like an image."""
    try:
        with open_image(path):
            return True
    except PIL.UnidentifiedImageError:
        return False
    except BROKEN:
        # The header belongs to a format of images: reading it reports what is wrong.
        return path.is_file()


def _problem(path: pathlib.Path, error: BaseException) -> str:
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "a pipe, a socket or a device" if path.exists() else "absent"
        return f"is {kind}, expected an image: correct the path"
    if placeholder := placeholders.find(path):
        return placeholder
    return f"is not a readable image ({one_line(error)}): copy or render it again"


class AnimatedImage:
    """A GIF, WebP, PNG or AVIF file with several frames, as a `video.Video`; frame times come from their durations."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        seconds, sizes = [0.0], set()
        try:
            for image in _each(path):
                duration = float(image.info.get("duration", 0)) / 1000
                seconds.append(seconds[-1] + (duration if duration > 0 else _FRAME_SECONDS))
                sizes.add(image.size)
        except BROKEN as error:
            raise UserError(f"{path} {_problem(path, error)}") from error
        if len(seconds) < 3:
            raise UserError(f"{path} holds {len(seconds) - 1} frames, expected a video of at least 2: remove it")
        self.times = np.array(seconds[:-1])
        self.size = next(iter(sizes))

    def frames(self) -> Generator[np.ndarray, None, None]:
        """Yield the frames uint8 [H, W, 3] in order."""
        for image in _each(self.path):
            yield to_rgb(image)


def _each(path: pathlib.Path) -> Generator[PIL.Image.Image, None, None]:
    """Yield the frames of an opened image one by one, decoded."""
    with open_image(path) as image:
        count = getattr(image, "n_frames", 1)
        if count > limits.VIDEO_FRAMES:
            raise ValueError(f"it has {count:,} frames, at most {limits.VIDEO_FRAMES:,} are read")
        for number in range(count):
            image.seek(number)
            image.load()
            yield image
