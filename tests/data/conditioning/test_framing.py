"""The published pipelines' cut of the first frame."""

import numpy as np
import PIL.Image
import pytest

from jworld.data.conditioning import framing


def picture(width, height):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size, left, top", [((64, 40), 12, 0), ((40, 60), 0, 10), ((41, 40), 0, 0), ((43, 40), 2, 0)])
def test_an_image_that_already_covers_is_only_cut(size, left, top):
    image = picture(*size)
    np.testing.assert_array_equal(
        framing.cover_crop(image, width=40, height=40), image[top : top + 40, left : left + 40]
    )


@pytest.mark.parametrize("size", [(90, 40), (30, 80), (33, 17)])
def test_other_images_are_scaled_to_cover_without_distortion(size):
    image = picture(*size)
    scale = max(48 / size[0], 32 / size[1])
    whole = PIL.Image.fromarray(image).resize((round(size[0] * scale), round(size[1] * scale)), PIL.Image.LANCZOS)
    left, top = (whole.width - 48) // 2, (whole.height - 32) // 2
    found = framing.cover_crop(image, width=48, height=32)
    assert found.shape == (32, 48, 3)
    np.testing.assert_array_equal(found, np.asarray(whole)[top : top + 32, left : left + 48])


# Numbers of HunyuanVideo-1.5's own function for its "480p".
@pytest.mark.parametrize(
    "size, bucket",
    [
        ((832, 480), (832, 480)),
        ((1920, 1080), (848, 480)),
        ((640, 640), (640, 640)),
        ((480, 832), (480, 832)),
        ((1024, 768), (720, 544)),
        ((4000, 300), (1280, 320)),
        ((300, 4000), (320, 1280)),
    ],
)
def test_closest_bucket(size, bucket):
    assert framing.closest_bucket(*size) == bucket
