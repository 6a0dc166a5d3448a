"""Images of conversations of every kind are read as by every other command, wherever they are stored."""

import io
import pathlib
import tarfile

import numpy as np
import PIL.Image
import pyarrow
import pytest
from pyarrow import parquet

from jworld.data import media
from jworld.data.conversations import formats, image_files

COLORS = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
LEVELS = np.linspace(0, 1, 48).reshape(6, 8)


def turned() -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    return exif


def palette() -> PIL.Image.Image:
    return PIL.Image.fromarray(COLORS).quantize(4)


KINDS = {
    "TURNED.PNG": (PIL.Image.fromarray(COLORS), {"format": "PNG", "exif": turned()}),
    "alpha.png": (PIL.Image.fromarray(np.dstack([COLORS, COLORS[..., :1]]), "RGBA"), {"format": "PNG"}),
    "gray.Png": (PIL.Image.fromarray(COLORS[..., 0]), {"format": "PNG"}),
    "palette.png": (palette(), {"format": "PNG", "transparency": 1}),
    "deep.png": (PIL.Image.fromarray((65535 * LEVELS).astype(np.uint16)), {"format": "PNG"}),
    "float.TIFF": (PIL.Image.fromarray(LEVELS.astype(np.float32)), {"format": "TIFF"}),
    "moving.GIF": (palette(), {"format": "GIF", "save_all": True, "append_images": [palette()]}),
    "moving.webp": (
        PIL.Image.fromarray(COLORS),
        {"format": "WEBP", "save_all": True, "append_images": [PIL.Image.fromarray(COLORS[::-1])], "lossless": True},
    ),
}


@pytest.mark.parametrize("name", list(KINDS))
def test_every_kind_of_image_in_every_place(name: str, tmp_path: pathlib.Path) -> None:
    image, options = KINDS[name]
    path = tmp_path / name
    image.save(path, **options)
    with PIL.Image.open(path) as opened:
        # The images of a plain conversion are different, and Pillow reports none of it.
        plain = np.asarray(opened.convert("RGB"))
    expected = media.read_image(path)
    if not name.startswith(("gray", "moving")):
        assert plain.shape != expected.shape or (plain != expected).any()

    data = path.read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
        offset = archive.getmember(name).offset_data if archive.getmember(name).offset_data else 512
    parquet.write_table(pyarrow.table({"image": [data]}), tmp_path / "a.parquet")
    places = (
        {"file": name},
        {"tar": "a.tar", "offset": offset, "size": len(data)},
        {"parquet": "a.parquet", "group": 0, "row": 0, "column": "image"},
    )
    for place in places:
        image_files.check(place, tmp_path)
        np.testing.assert_array_equal(np.asarray(image_files.read(place, tmp_path)), expected)


def test_archives_of_captions_take_every_suffix(tmp_path: pathlib.Path) -> None:
    with tarfile.open(tmp_path / "00000.tar", "w") as archive:
        for number, (name, (image, options)) in enumerate(KINDS.items()):
            file = tmp_path / f"{number}.{name.partition('.')[2]}"
            image.save(file, **options)
            file.with_suffix(".txt").write_text("a caption")
            archive.add(file, arcname=file.name)
            archive.add(file.with_suffix(".txt"), arcname=f"{number}.txt")
    found = list(formats.read(formats.SetConfig(format="captions", path=str(tmp_path))))
    assert [row.problem for row in found] == [""] * len(KINDS)
    for number, row in enumerate(found):
        (file,) = (each for each in tmp_path.glob(f"{number}.*") if each.suffix != ".txt")
        np.testing.assert_array_equal(image_files.read(row.places[0], tmp_path), media.read_image(file))


def test_values_without_a_scale_are_a_problem(tmp_path: pathlib.Path) -> None:
    PIL.Image.fromarray(np.full((4, 4), -3.0, np.float32)).save(tmp_path / "a.tiff")
    for read in (image_files.check, image_files.read):
        with pytest.raises(ValueError, match="values go from -3 to -3"):
            read({"file": "a.tiff"}, tmp_path)
