"""The Python example of the README, executed as it stands."""

import os
import pathlib
import re
import subprocess
import sys

import commands
import imageio.v3 as iio

README = commands.ROOT / "README.md"


def python_blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def test_python_example(tmp_path: pathlib.Path) -> None:
    (block,) = python_blocks(README.read_text())
    result = subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "(61, 96, 128, 3) 16.0\n"
    assert iio.imread(tmp_path / "out.mp4").shape == (61, 96, 128, 3)


def test_first_screen_is_short() -> None:
    assert len(README.read_text().split()) < 900
