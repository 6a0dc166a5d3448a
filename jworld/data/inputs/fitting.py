"""Resizing and cropping of frames to the model's size, and the resulting intrinsics."""

import dataclasses

import numpy as np
import PIL.Image

from jworld.data import images
from jworld.utils.errors import UserError

MODES = ("crop", "stretch")
_FILTERS = {
    "lanczos": PIL.Image.Resampling.LANCZOS,
    "bicubic": PIL.Image.Resampling.BICUBIC,
    "bilinear": PIL.Image.Resampling.BILINEAR,
}
RESAMPLINGS = ("lanczos", "bicubic", "bilinear", "area")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """The way from a frame of any size to width x height.

    Attributes:
      width, height: in pixels.
      mode: "crop" scales both sides by max(width / w, height / h), rounded to whole pixels, and crops around the
        center, which keeps the aspect ratio. "stretch" scales each side separately, which keeps the whole view.
      resampling: one of RESAMPLINGS. All average over the covered pixels if the frame shrinks; "area" does only that.
    """

    width: int
    height: int
    mode: str = "crop"
    resampling: str = "lanczos"

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise UserError(f"size is {self.width}x{self.height}, expected at least 1x1: change --width or --height")
        for name, allowed in (("mode", MODES), ("resampling", RESAMPLINGS)):
            if getattr(self, name) not in allowed:
                raise UserError(f"fit {name} is {getattr(self, name)!r}, expected one of {', '.join(allowed)}")

    def scaled(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return width and height of a frame after scaling, before the crop."""
        if self.mode == "stretch":
            return self.width, self.height
        scale = max(self.width / size[0], self.height / size[1])
        return round(size[0] * scale), round(size[1] * scale)

    def frame(self, frame: np.ndarray) -> np.ndarray:
        """Convert a frame uint8 [H, W, 3] to uint8 [height, width, 3]."""
        width, height = self.scaled((frame.shape[1], frame.shape[0]))
        if self.resampling == "area":
            frame = images.resize(frame, width=width, height=height)
        elif (width, height) != (frame.shape[1], frame.shape[0]):
            image = PIL.Image.fromarray(frame).resize((width, height), _FILTERS[self.resampling])
            frame = np.asarray(image)
        left, top = self._corner(width, height)
        return frame[top : top + self.height, left : left + self.width]

    def intrinsics(self, intrinsics: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Convert intrinsics [..., 3, 3] divided by the old size (w, h) to intrinsics divided by the new size.

        Stretching does not change them. A crop raises the focal length relative to the image and moves the principal
        point.
        """
        width, height = self.scaled(size)
        left, top = self._corner(width, height)
        cut = np.array(
            [
                [width / self.width, 0, -left / self.width],
                [0, height / self.height, -top / self.height],
                [0, 0, 1],
            ]
        )
        moved: np.ndarray = cut @ intrinsics
        return moved

    def _corner(self, width: int, height: int) -> tuple[int, int]:
        return (width - self.width) // 2, (height - self.height) // 2
