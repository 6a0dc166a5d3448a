"""Frames of any size -> the model's size, and what that does to the intrinsics."""

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
    """How a frame is brought to width x height.

    mode "crop": scaled by max(width / w, height / h) to the next whole sizes and cut around the centre, the shape of
    things is kept; "stretch": every side scaled by itself, the whole view is kept. resampling: one of RESAMPLINGS, all
    averaging over the covered pixels where the frame shrinks; "area" is that mean alone.
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
        """Width and height of a frame after scaling, before the cut."""
        if self.mode == "stretch":
            return self.width, self.height
        scale = max(self.width / size[0], self.height / size[1])
        return round(size[0] * scale), round(size[1] * scale)

    def frame(self, frame: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> uint8 [height, width, 3]."""
        width, height = self.scaled((frame.shape[1], frame.shape[0]))
        if self.resampling == "area":
            frame = images.resize(frame, width=width, height=height)
        elif (width, height) != (frame.shape[1], frame.shape[0]):
            image = PIL.Image.fromarray(frame).resize((width, height), _FILTERS[self.resampling])
            frame = np.asarray(image)
        left, top = self._corner(width, height)
        return frame[top : top + self.height, left : left + self.width]

    def intrinsics(self, intrinsics: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Intrinsics [..., 3, 3] divided by the size of a frame of `size` (w, h) -> divided by the new size.

        Stretching leaves them as they are; a cut makes the focal length a larger part of the image and moves the
        principal point.
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
        return cut @ intrinsics

    def _corner(self, width: int, height: int) -> tuple[int, int]:
        return (width - self.width) // 2, (height - self.height) // 2
