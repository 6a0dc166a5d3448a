"""Whole chunks: paths that end within one are refused, filled or cut."""

import pytest

from jworld.cameras import lengths
from jworld.utils.errors import UserError


def whole(count: int, length: str | None) -> int:
    return lengths.whole(count, 4, length, where="--pose x", unit="latents", chunk="chunk")


def test_whole_chunks() -> None:
    assert [whole(8, length) for length in (None, "pad", "cut")] == [8, 8, 8]
    assert (whole(9, "pad"), whole(9, "cut"), whole(33, "cut"), whole(1, "pad")) == (12, 8, 32, 4)


def test_errors_name_the_option() -> None:
    with pytest.raises(
        UserError, match=r"--pose x has 9 latents, expected a multiple of 4, a chunk: add 3, or give --length pad or"
    ):
        whole(9, None)
    for length in (None, "cut"):
        with pytest.raises(UserError, match=r"has 3 latents, .*add 1, or give --length pad$"):
            whole(3, length)
    with pytest.raises(UserError, match="--length is 'both', expected one of pad, cut"):
        whole(9, "both")
