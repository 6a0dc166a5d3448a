"""Sizes of generated videos by published sets of sizes."""

import pytest

from jworld.systems import frame_sizes
from jworld.systems.cosmos import system as cosmos
from jworld.systems.worldplay.system import TIERS, TOKEN, WorldPlay
from jworld.utils import errors

HUNYUAN = frame_sizes.FrameSizes(current=(832, 480), unit=(16, 16), ratio=16, tiers=WorldPlay.tiers)
COSMOS = frame_sizes.FrameSizes(
    current=(1280, 704), unit=(16, 16), ratio=8, tiers=cosmos.TIERS, named=True, most=(1920, 1920)
)


def test_hunyuan_chooses_its_published_buckets() -> None:
    """The numbers are those of the published program for images of these shapes."""
    found = {aspect: HUNYUAN.choose("480p", aspect) for aspect in ((16, 9), (9, 16), (1, 1), (4, 3), (832, 480))}
    assert found == {
        (16, 9): (848, 480),
        (9, 16): (480, 848),
        (1, 1): (640, 640),
        (4, 3): (720, 544),
        (832, 480): (832, 480),
    }
    assert HUNYUAN.choose("720p", (16, 9)) == (1280, 720)
    assert HUNYUAN.choose(None, (1, 1)) == (640, 640)
    assert HUNYUAN.choose("720p", None) == (1248, 720)


@pytest.mark.parametrize("tokens", [1, 12, *TIERS.values()])
def test_buckets_are_those_of_a_walk_along_the_largest_shapes(tokens: int) -> None:
    """From the widest shape on, a row is added where the tokens allow it, and else a column is left out."""
    found, columns, rows = [], tokens, 1
    while columns:
        if max(columns, rows) <= frame_sizes.MAX_RATIO * min(columns, rows):
            found.append((columns * TOKEN[0], rows * TOKEN[1]))
        if (rows + 1) * columns <= tokens:
            rows += 1
        else:
            columns -= 1
    assert frame_sizes.buckets(tokens, TOKEN) == found


def test_cosmos_has_five_ratios() -> None:
    found = [COSMOS.choose(None, aspect) for aspect in ((16, 9), (4, 3), (1, 1), (3, 4), (9, 16))]
    assert found == [(1280, 704), (960, 704), (960, 960), (704, 960), (704, 1280)]
    assert COSMOS.choose("480p", (32, 18)) == (768, 432)
    assert COSMOS.choose("480p", None) == (768, 432)
    with pytest.raises(errors.UserError, match="--aspect is 21:9, expected one of 16:9, 4:3, 1:1, 3:4, 9:16, or"):
        COSMOS.choose(None, (21, 9))
    with pytest.raises(errors.UserError, match="--size is 512p, expected WxH or one of 480p, 720p"):
        COSMOS.choose("512p", None)


def test_a_model_of_another_size_keeps_about_its_number_of_tokens() -> None:
    small = frame_sizes.FrameSizes(current=(64, 48), unit=(16, 16), ratio=16, tiers=cosmos.TIERS, named=True)
    assert small.choose(None, (21, 9)) == (80, 32)
    assert small.choose(None, (4, 3)) == (64, 48)


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((1281, 705), "1280x704 or 1296x720"), ((5, 704), "16x704"), ((4000, 704), "1920x704"), ((0, 16), "16x16")],
)
def test_a_size_that_does_not_fit_names_the_nearest(size: frame_sizes.Size, nearest: str) -> None:
    with pytest.raises(errors.UserError, match=f"multiples of 16x16 .* of at most 1920x1920: .* {nearest}$"):
        COSMOS.choose(size, None)


@pytest.mark.parametrize("text", ["", "16", "16:", "16:0", "a:b", "-1:2", "1:2:3"])
def test_other_texts_are_no_ratio(text: str) -> None:
    with pytest.raises(ValueError):
        frame_sizes.parse(text, ":")
