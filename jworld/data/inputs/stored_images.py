"""Videos that are stored frame by frame: encoded images, and raw pixels."""

import pathlib
from collections.abc import Generator, Sequence

import numpy as np

from jworld.data.inputs import image
from jworld.utils import limits
from jworld.utils.errors import UserError, one_line


class EncodedImages:
    """A `video.Video` of encoded images, such as JPEG or PNG, at a constant rate.

    Args:
      path: the file that holds them.
      images: their bytes.
      fps: images per second.
      name: which part of the file they are, for errors.
    """

    def __init__(self, path: pathlib.Path, images: Sequence[bytes], *, fps: float, name: str) -> None:
        self.path, self._images, self._name = path, images, name
        if not 2 <= len(images) <= limits.VIDEO_FRAMES:
            raise UserError(f"{path}: {name} has {len(images)} images, expected at least 2: leave it out")
        self.times = np.arange(len(images)) / fps
        first = self._read(0)
        self.size = first.shape[1], first.shape[0]

    def frames(self) -> Generator[np.ndarray, None, None]:
        """Yield the frames, see `Video`."""
        for number in range(len(self._images)):
            frame = self._read(number)
            if frame.shape[1::-1] != self.size:
                raise UserError(f"{self.path}: image {number} of {self._name} has another size than the first one")
            yield frame

    def _read(self, number: int) -> np.ndarray:
        try:
            with image.open_image(self._images[number]) as opened:
                return image.to_rgb(opened)
        except image.BROKEN as error:
            raise UserError(
                f"{self.path}: image {number} of {self._name} is not readable ({one_line(error)}): download or write "
                "the file again"
            ) from error


class RawFrames:
    """A `video.Video` of pixels uint8 [T, H, W, 3] at a constant rate."""

    def __init__(self, path: pathlib.Path, pixels: np.ndarray, *, fps: float) -> None:
        self.path, self._pixels = path, pixels
        self.times = np.arange(len(pixels)) / fps
        self.size = pixels.shape[2], pixels.shape[1]

    def frames(self) -> Generator[np.ndarray, None, None]:
        """Yield the frames, see `Video`."""
        yield from self._pixels
