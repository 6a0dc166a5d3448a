"""Area-averaged resizing of images, and the weight-free "thumbnail" encoder of the first frame."""

import einops
import numpy as np
import PIL.Image

THUMBNAIL_FAMILY = "thumbnail"
THUMBNAIL_TOKENS = 12
THUMBNAIL_DIM = 12
_THUMBNAIL_SIZE = (8, 6)


def resize(frames: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """Resize uint8 [..., H, W, 3] to uint8 [..., height, width, 3]: the mean of the area that each new pixel covers.

    The whole image is stretched, never cropped, so intrinsics that are divided by the image size stay valid.
    """
    if frames.shape[-3:-1] == (height, width):
        return frames
    *lead, old_height, old_width, channels = frames.shape
    if old_height % height == 0 and old_width % width == 0:
        blocks = frames.reshape(*lead, height, old_height // height, width, old_width // width, channels)
        means: np.ndarray = np.rint(blocks.mean(axis=(-4, -2), dtype=np.float32))
        return means.astype(np.uint8)
    flat = frames.reshape(-1, *frames.shape[-3:])
    small = [PIL.Image.fromarray(frame).resize((width, height), PIL.Image.Resampling.BOX) for frame in flat]
    return np.stack([np.asarray(image) for image in small]).reshape(*lead, height, width, 3)


def thumbnail_tokens(image: np.ndarray) -> np.ndarray:
    """Encode an image uint8 [H, W, 3] of any size as tokens float32 [12, 12] in [-1, 1].

    The image is averaged to 8 x 6 pixels, and each 2 x 2 pixels are one token, row by row. It replaces a trained image
    encoder if none is installed: the model is conditioned on the layout of colors in the first frame.
    """
    width, height = _THUMBNAIL_SIZE
    pixels = resize(image, width=width, height=height).astype(np.float32) / 127.5 - 1.0
    return einops.rearrange(pixels, "(h p) (w q) c -> (h w) (p q c)", p=2, q=2)
