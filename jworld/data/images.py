"""Images as arrays: area-averaging to the model's size, and the weight-free "thumbnail" encoder of the first frame."""

import einops
import numpy as np
import PIL.Image

THUMBNAIL_FAMILY = "thumbnail"
THUMBNAIL_TOKENS = 12
THUMBNAIL_DIM = 12
_THUMBNAIL_SIZE = (8, 6)


def resize(frames: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """uint8 [..., H, W, 3] -> uint8 [..., height, width, 3]: the mean of the area that each new pixel covers.

    The whole image is stretched, never cropped, so intrinsics that are normalised by the image size stay true.
    """
    if frames.shape[-3:-1] == (height, width):
        return frames
    *lead, old_height, old_width, colours = frames.shape
    if old_height % height == 0 and old_width % width == 0:
        blocks = frames.reshape(*lead, height, old_height // height, width, old_width // width, colours)
        return np.rint(blocks.mean(axis=(-4, -2), dtype=np.float32)).astype(np.uint8)
    flat = frames.reshape(-1, *frames.shape[-3:])
    small = [PIL.Image.fromarray(frame).resize((width, height), PIL.Image.Resampling.BOX) for frame in flat]
    return np.stack([np.asarray(image) for image in small]).reshape(*lead, height, width, 3)


def thumbnail_tokens(image: np.ndarray) -> np.ndarray:
    """Image uint8 [H, W, 3] of any size -> float32 [12, 12] in [-1, 1].

    The image averaged to 8 x 6 pixels, each 2 x 2 of them one token, row by row. A stand-in for a trained image encoder
    where none is installed: it tells the model the colours of the first view and where they are.
    """
    width, height = _THUMBNAIL_SIZE
    pixels = resize(image, width=width, height=height).astype(np.float32) / 127.5 - 1.0
    return einops.rearrange(pixels, "(h p) (w q) c -> (h w) (p q c)", p=2, q=2)
