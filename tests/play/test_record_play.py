"""The script that records the page: its settings, and the size of what it writes."""

import io
import pathlib

import numpy as np
import PIL.Image
import pytest

from jworld.utils import errors
from scripts import record_play


def test_keys_and_mistakes(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert record_play.parse_keys("w*3, w+right,none*2") == [("w", 3), ("w+right", 1), ("none", 2)]
    for wrong in ("w*0", "w*x"):
        with pytest.raises(errors.UserError, match="expected actions with their steps"):
            record_play.parse_keys(wrong)
    with pytest.raises(SystemExit) as ended:
        record_play.main(["--keys=w*0", f"--output={tmp_path / 'x.webp'}"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: --keys is 'w*0'")


def test_a_file_of_at_most_so_many_bytes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3)).astype(np.uint8)
    screenshots = [PIL.Image.fromarray(image) for image in noise]
    best, quality = record_play.encode(screenshots, fps=8, most=100_000)
    assert quality == 90
    small, lower = record_play.encode(screenshots, fps=8, most=len(best) * 3 // 4)
    assert len(small) <= len(best) * 3 // 4
    assert lower < quality
    with PIL.Image.open(io.BytesIO(small)) as image:
        assert (image.n_frames, image.size) == (3, (32, 24))
    with pytest.raises(errors.UserError, match="--bytes is 100, but 3 screenshots need"):
        record_play.encode(screenshots, fps=8, most=100)
