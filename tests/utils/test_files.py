"""Files appear when they are complete, with the rights of other new files."""

import os
import pathlib

import numpy as np
import pytest
import safetensors.numpy

from jworld.utils import files


def test_replaced_files_have_the_usual_rights(tmp_path: pathlib.Path) -> None:
    plain, ours = tmp_path / "plain", tmp_path / "ours.safetensors"
    previous = os.umask(0o027)
    try:
        plain.touch()
        with files.replacing(ours) as temporary:
            safetensors.numpy.save_file({"x": np.zeros(3)}, temporary)
    finally:
        os.umask(previous)
    assert ours.stat().st_mode == plain.stat().st_mode
    assert ours.stat().st_mode & 0o777 == 0o640


def test_a_failed_replacement_leaves_the_old_file_and_nothing_else(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(IsADirectoryError), files.replacing(path):
        tmp_path.write_text("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
