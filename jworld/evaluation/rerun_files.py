"""Writer of recordings for the Rerun viewer (https://rerun.io): images with their cameras, and links between cameras.

The viewer is a program of its own; `rerun FILE.rrd` shows a recording.
"""

import importlib
import pathlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from jworld.utils import errors

#: Quality of the JPEG images in a recording.
QUALITY = 90


def rerun() -> ModuleType:
    """Return the package `rerun`; a `UserError` if it is not installed."""
    try:
        return importlib.import_module("rerun")
    except ImportError as error:
        raise errors.UserError(
            'the package rerun-sdk is not installed, which writes recordings: pip install -e ".[rerun]"'
        ) from error


class Recording:
    """A recording of videos, each below a name of its own.

    Cameras are in one world with the axes of the first camera (x right, y down, z forward).
    """

    def __init__(self, path: pathlib.Path) -> None:
        """Begin a file, which `close` completes."""
        self._rerun: Any = rerun()
        self._stream = self._rerun.RecordingStream("jworld")
        self._stream.save(str(path))
        self._stream.log("/", self._rerun.ViewCoordinates.RDF, static=True)

    def close(self) -> None:
        """Write what is left."""
        self._stream.disconnect()

    def frame(self, name: str, number: int, image: np.ndarray, *, seconds: float, text: str = "") -> None:
        """Log the frame uint8 [H, W, 3] with this number of a video, and what it was generated from."""
        self._stream.set_time("frame", sequence=number)
        self._stream.set_time("time", duration=seconds)
        self._stream.log(f"{name}/camera/image", self._rerun.Image(image).compress(jpeg_quality=QUALITY))
        if text:
            self._stream.log(f"{name}/action", self._rerun.TextLog(text))

    def camera(self, name: str, w2c: np.ndarray, intrinsics: np.ndarray, size: tuple[int, int]) -> None:
        """Log the camera of the frame that was logged last.

        Args:
          name: of the video.
          w2c: world-to-camera [4, 4], OpenCV axes.
          intrinsics: [3, 3], divided by the image size.
          size: (width, height) of the image in pixels.
        """
        c2w = np.linalg.inv(np.asarray(w2c, np.float64))
        pose = self._rerun.Transform3D(translation=c2w[:3, 3], mat3x3=c2w[:3, :3])
        pixels = np.asarray(intrinsics, np.float64) * [[size[0]], [size[1]], [1]]
        self._stream.log(f"{name}/camera", pose)
        self._stream.log(
            f"{name}/camera/image",
            self._rerun.Pinhole(image_from_camera=pixels, resolution=size, image_plane_distance=0.5),
        )

    def links(self, name: str, w2c: np.ndarray, others: Sequence[np.ndarray]) -> None:
        """Log lines from a camera [4, 4] to those of the frames that it was conditioned on."""
        center, *ends = (np.linalg.inv(np.asarray(camera, np.float64))[:3, 3] for camera in (w2c, *others))
        self._stream.log(f"{name}/memory", self._rerun.LineStrips3D([[center, end] for end in ends]))

    def path(self, name: str, w2c: np.ndarray) -> None:
        """Log the way of the cameras [T, 4, 4] of a whole video."""
        centers = np.linalg.inv(np.asarray(w2c, np.float64))[:, :3, 3]
        self._stream.log(f"{name}/path", self._rerun.LineStrips3D([centers]), static=True)
