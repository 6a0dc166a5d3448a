"""Outputs that cannot be written are one sentence before the work, and nothing is made by the check."""

import os
import pathlib
import shutil

import pytest

from jworld.utils import errors, outputs


def test_a_place_that_can_be_written(tmp_path: pathlib.Path) -> None:
    outputs.check_file("--out", tmp_path / "a" / "b" / "out.mp4")
    outputs.check_folder("--output", tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("folder", "is a folder, expected the name of a file"),
        ("file/out.mp4", "file is not a folder"),
        ("link/out.mp4", "is a link to nothing"),
        ("link", "is a link to nothing"),
        ("/proc/none/out.mp4", "cannot be written in /proc"),
        # Replacing it, as root, would take it from the whole machine.
        ("/dev/null", "is a pipe, a socket or a device, expected a file"),
        ("pipe.mp4", "is a pipe, a socket or a device, expected a file"),
        (f"{'x' * 240}.mp4", "has a name of 244 bytes, expected at most 230: shorten it"),
    ],
)
def test_a_place_that_cannot(tmp_path: pathlib.Path, name: str, words: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(errors.UserError, match=words):
        outputs.check_file("--out", tmp_path / name)


def test_too_little_space(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 9, 1_000_000))
    with pytest.raises(errors.UserError, match="has 1 MB of free space, expected at least 50"):
        outputs.check_folder("--output", tmp_path)


def test_a_file_of_another_user(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.mp4").write_text("")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(errors.UserError, match="may not be written by this user"):
        outputs.check_file("--out", tmp_path / "out.mp4")
