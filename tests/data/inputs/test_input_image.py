"""The image reader: orientation, transparency, bit depths, animations and damage."""

import numpy as np
import PIL.Image
import pytest

from jworld.data.inputs import image, video
from jworld.utils.errors import UserError

COLORS = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
LEVELS = np.linspace(0, 255, 48).reshape(6, 8)


def save(path, array, mode=None, **options):
    PIL.Image.fromarray(array, mode).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", image.SUFFIXES)
def test_every_kind_of_file(tmp_path, suffix):
    lossy = suffix in (".jpg", ".jpeg")
    flat = np.full_like(COLORS, (200, 30, 90)) if lossy else COLORS
    for name in (f"a{suffix}", f"B{suffix.upper()}"):
        path = save(tmp_path / name, flat, **({"lossless": True} if suffix == ".webp" else {}))
        np.testing.assert_allclose(image.read(path).astype(int), flat, atol=3 if lossy else 0)


def test_exif_orientation(tmp_path):
    for suffix in (".png", ".jpg", ".webp"):
        exif = PIL.Image.Exif()
        exif[0x0112] = 6  # the camera was turned: the right side of the file is up
        flat = np.zeros((16, 32, 3), np.uint8)
        flat[:, :16] = 255
        shown = image.read(save(tmp_path / f"a{suffix}", flat, exif=exif))
        assert shown.shape == (32, 16, 3)
        assert shown[:14].min() > 240
        assert shown[18:].max() < 15


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_transparency_is_over_black(tmp_path, suffix):
    rgba = np.concatenate([COLORS, np.full((6, 8, 1), 255, np.uint8)], axis=-1)
    rgba[2:4, :, 3], rgba[4:, :, 3] = 128, 0
    lossless = {"lossless": True, "exact": True} if suffix == ".webp" else {}
    shown = image.read(save(tmp_path / f"a{suffix}", rgba, **lossless)).astype(int)
    np.testing.assert_array_equal(shown[:2], COLORS[:2])
    np.testing.assert_allclose(shown[2:4], COLORS[2:4] * (128 / 255), atol=0.51)
    np.testing.assert_array_equal(shown[4:], 0)


def test_palettes_and_gray_with_transparency(tmp_path):
    indices = (np.arange(48).reshape(6, 8) % 3).astype(np.uint8)
    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    opened = PIL.Image.fromarray(indices, "P")
    opened.putpalette(palette.tobytes())
    opened.save(tmp_path / "p.png", transparency=1)
    expected = palette[indices] * (indices != 1)[..., None]
    np.testing.assert_array_equal(image.read(tmp_path / "p.png"), expected)
    opened.save(tmp_path / "q.bmp")
    np.testing.assert_array_equal(image.read(tmp_path / "q.bmp"), palette[indices])
    gray = np.stack([LEVELS, np.where(LEVELS < 100, 0, 255)], axis=-1).astype(np.uint8)
    shown = image.read(save(tmp_path / "l.png", gray))
    np.testing.assert_array_equal(shown[..., 0], gray[..., 0] * (gray[..., 1] > 0))
    np.testing.assert_array_equal(shown[..., 0], shown[..., 2])
    bits = PIL.Image.fromarray(LEVELS > 100)
    bits.save(tmp_path / "b.png")
    np.testing.assert_array_equal(image.read(tmp_path / "b.png")[..., 1], 255 * (LEVELS > 100))


@pytest.mark.parametrize(
    "name, values",
    [
        ("a.png", np.rint(LEVELS * 257).astype(np.uint16)),
        ("a.tif", np.rint(LEVELS * 257).astype(np.uint16)),
        ("i.tif", np.rint(LEVELS * 257).astype(np.int32)),
        ("bytes.tif", np.rint(LEVELS).astype(np.int32)),
        ("f.tif", (LEVELS / 255).astype(np.float32)),
        ("g.tif", LEVELS.astype(np.float32)),
    ],
)
def test_16_bits_and_floats_are_scaled(tmp_path, name, values):
    shown = image.read(save(tmp_path / name, values))
    assert shown.shape == (6, 8, 3)
    np.testing.assert_allclose(shown[..., 0].astype(int), np.rint(LEVELS), atol=1)
    np.testing.assert_array_equal(shown[..., 0], shown[..., 1])


def test_a_dark_image_of_16_bits_stays_dark(tmp_path):
    assert image.read(save(tmp_path / "a.png", np.full((4, 4), 200, np.uint16))).max() == 1


@pytest.mark.parametrize("values", [-LEVELS, 1e6 + LEVELS, np.where(LEVELS > 100, np.nan, 0.5)])
def test_values_without_a_scale_are_refused(tmp_path, values):
    path = save(tmp_path / "a.tif", values.astype(np.float32))
    with pytest.raises(UserError, match=r"a\.tif is not a readable image \(its values go from .*: save it with 8 bits"):
        image.read(path)


def animation(path, durations, **options):
    frames = [PIL.Image.fromarray(np.full((8, 12, 3), 40 * i, np.uint8)) for i in range(len(durations))]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, **options)
    return path


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animations_are_videos_with_time_stamps(tmp_path, suffix):
    path = animation(tmp_path / f"a{suffix}", [100, 200, 100, 50, 50])
    opened = video.open_video(path)
    np.testing.assert_allclose(opened.times, [0, 0.1, 0.3, 0.4, 0.45], atol=1e-6)
    assert opened.size == (12, 8)
    np.testing.assert_allclose([frame.mean() for frame in opened.frames()], [0, 40, 80, 120, 160], atol=2)
    assert image.read(path).shape == (8, 12, 3)
    assert image.read(path).max() < 3


def test_pages_are_not_frames(tmp_path):
    assert not image.is_animated(animation(tmp_path / "a.tif", [100, 100]))


def test_files_that_are_not_images(tmp_path):
    path = save(tmp_path / "a.png", COLORS)
    data = path.read_bytes()
    for damaged, words in (
        (data[:60], r"a\.png is not a readable image"),
        (b"no image", r"a\.png is not a readable image \(cannot identify"),
        (b"", r"a\.png is empty: download or copy it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", r"a\.png is a Git LFS pointer .* git lfs pull"),
        (b"\n<!DOCTYPE html><html>", r"a\.png is a web page and not the file itself"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=words) as caught:
            image.read(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"b\.png is absent"):
        image.read(tmp_path / "b.png")
    with pytest.raises(UserError, match="is a folder, expected an image"):
        image.read(tmp_path)


def test_an_image_of_too_many_pixels_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", COLORS)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=r"a\.png is not a readable image \(.*exceeds limit"):
        image.read(path)
