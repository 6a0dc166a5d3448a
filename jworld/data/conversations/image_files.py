"""Images of conversations: their locations, and their conversion to the two image inputs of a model.

A location is a JSON object: {"file"} for an image file, with the "url" that it was downloaded from if there is one;
{"tar", "offset", "size"} for one in a tar archive; {"parquet", "group", "row", "column"} for one in a table; {"array",
"index"} for one in a numpy file uint8 [N, H, W, 3]. An additional key "boxes" lists boxes to draw on the image. Paths
are absolute or relative to the folder of the set.

Images are converted as by every other command, see `jworld.data.inputs.image`; of an animation or of several pages the
first one counts. Boxes belong to the upright image.
"""

import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import PIL.Image

from jworld.data import tables
from jworld.data.conversations import spatial
from jworld.data.inputs import image as inputs
from jworld.utils import limits

ImageSource = Mapping[str, Any]

#: Side of the original's input to the autoencoder, in pixels, for images of every shape.
WORLD_SIZE = 512
#: Suffixes of image files, in lower case.
SUFFIXES = (*inputs.SUFFIXES, *inputs.ANIMATED_SUFFIXES)


def read(place: ImageSource, root: pathlib.Path) -> PIL.Image.Image:
    """Read and decode an image, RGB.

    Raises:
      ValueError: the image is absent or cannot be decoded.
    """
    try:
        image = PIL.Image.fromarray(inputs.to_rgb(_open(place, root)))
    except inputs.BROKEN as error:
        raise ValueError(f"the image {describe(place)} cannot be read ({error})") from error
    return spatial.draw_boxes(image, place["boxes"]) if place.get("boxes") else image


def check(place: ImageSource, root: pathlib.Path) -> None:
    """Decode an image, at a small size if its format allows, to check that it is complete.

    Raises:
      ValueError: as in `read`.
    """
    try:
        image = _open(place, root)
        image.draft("RGB", (64, 64))
        inputs.to_rgb(image)
    except inputs.BROKEN as error:
        raise ValueError(f"the image {describe(place)} cannot be read ({error})") from error


def describe(place: ImageSource) -> str:
    """Describe a location in a few words."""
    kind = next((key for key in ("url", "file", "tar", "parquet", "array") if key in place), None)
    if kind is None:
        return "nowhere"
    return str(place[kind]) + "".join(
        f" {key} {place[key]}" for key in ("offset", "group", "row", "index") if key in place
    )


def _open(place: ImageSource, root: pathlib.Path) -> PIL.Image.Image:
    if "file" in place:
        return inputs.open_image(root / place["file"])
    if "tar" in place:
        with (root / place["tar"]).open("rb") as file:
            file.seek(place["offset"])
            return inputs.open_image(file.read(min(place["size"], limits.IMAGE_BYTES + 1)))
    if "parquet" in place:
        value = tables.cell(str(root / place["parquet"]), place["group"], place["column"], place["row"])
        return open_value(value, root)
    return PIL.Image.fromarray(_array(str(root / place["array"]))[place["index"]])


def open_value(value: Any, root: pathlib.Path) -> PIL.Image.Image:
    """Open an image as stored in published tables: its bytes, {"bytes", "path"}, or the name of a file below `root`."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return inputs.open_image(value)
    if not isinstance(value, str):
        raise OSError(f"found a {type(value).__name__}, expected bytes or the name of a file")
    return inputs.open_image(inside(root, value))


def inside(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Return the path of a file that a data set names in a folder.

    Raises:
      ValueError: the name leads out of the folder.
    """
    path = pathlib.Path(os.path.normpath(folder.absolute() / name))
    if not path.is_relative_to(os.path.normpath(folder.absolute())):
        raise ValueError(f"{name!r:.200} is outside of the folder {folder}")
    return path


@functools.lru_cache(maxsize=8)
def _array(path: str) -> np.ndarray:
    stored: np.ndarray = np.load(path, mmap_mode="r")
    return stored


def resized(image: PIL.Image.Image, size: int) -> np.ndarray:
    """Resize an RGB image to uint8 [size, size, 3], bilinear, without its aspect ratio, as the original does."""
    return np.asarray(image.resize((size, size), PIL.Image.Resampling.BILINEAR))
