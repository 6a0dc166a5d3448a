"""First images of `jworld play`: views of the worlds that a model was trained on."""

import pathlib

import ml_collections
import pytest

from jworld.data.recording import doom
from jworld.play import images
from jworld.utils import errors


def config(source: str) -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict({"data": {"recording": {"source": source}}})


def test_a_model_of_two_worlds_has_views_of_both() -> None:
    pytest.importorskip("vizdoom")
    found = images.rendered(config("worlds"), (32, 24))
    assert [image.name for image in found] == [f"view-{number + 1}" for number in range(images.COUNT)]
    assert [image.name for image in found if "maze" in image.caption] == ["view-2", "view-5"]
    (first, *_) = images.rendered(config("worlds"), (32, 24), source="doom")
    assert "maze" in first.caption


def test_without_the_engine_the_views_of_rooms_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doom, "available", lambda: False)
    found = images.rendered(config("worlds"), (32, 24))
    assert [image.name for image in found] == ["view-1", "view-3", "view-4", "view-6"]
    assert all("rooms" in image.caption for image in found)
    with pytest.raises(errors.UserError, match="vizdoom, which is not installed"):
        images.rendered(config("doom"), (32, 24))


def test_two_images_of_one_name_are_refused(tmp_path: pathlib.Path) -> None:
    image = images.rendered(config(""), (32, 24))[0]
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "first.png").write_bytes(image.png)
    with pytest.raises(errors.UserError, match="another one has the name first"):
        images.given([tmp_path / "a" / "first.png", tmp_path / "b" / "first.png"], "")
