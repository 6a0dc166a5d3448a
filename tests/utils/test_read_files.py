"""Readers of whole files and of safetensors files: one sentence for every mistake, within the limits."""

import os
import pathlib
import sys

import numpy as np
import pytest
import safetensors.numpy

from jworld.models.autoencoders import linear
from jworld.utils import errors, files, tensor_files
from jworld.utils.errors import UserError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"{", "is not valid JSON"),
        (b"[" * 200_000, "it is nested too deeply"),
        (b'{"a":' * 100_000, "it is nested too deeply"),
        (b"1" * 5000, "is not valid JSON"),
        (b"\xff\xfe", "is not a text file in UTF-8"),
        ('{"a": "é"}'.encode("latin-1"), "byte 7 is 0xe9"),
        (b"[1]", "holds a list, expected an object: fix it"),
        (b"null", "holds null, expected an object: fix it"),
        (b"true", "holds a truth value"),
    ],
)
def test_json(tmp_path: pathlib.Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        files.read_json(tmp_path / "a.json", name="--batch a.json", fix="fix it")
    assert str(caught.value).startswith("--batch a.json ")


def test_paths(tmp_path: pathlib.Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("1")
    for path, message in (
        (tmp_path / "none", "is absent"),
        (tmp_path, "is a folder, expected a file"),
        (tmp_path / "loop", "is a link that leads back to itself"),
        (tmp_path / "file" / "b", "a part of its path is a file"),
        (tmp_path / ("x" * 300), "has a name that is too long"),
        (pathlib.Path("/proc/self/mem"), r"cannot be read \(Input/output error\)"),
    ):
        with pytest.raises(UserError, match=message):
            files.read_json(path)
        with pytest.raises(UserError, match=message):
            tensor_files.open_file(path, fix="give another")
    assert files.read_json(tmp_path / "file", None) == 1


def test_names_with_control_characters_stay_in_one_line(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @errors.exit_on_user_error
    def read(path: pathlib.Path) -> None:
        files.read_json(path)

    @errors.exit_on_user_error
    def listed(path: pathlib.Path) -> None:
        os.listdir(path)

    for command in (read, listed):
        with pytest.raises(SystemExit) as ended:
            command(tmp_path / "a\nb\x1b[31m\u202ec é")
        assert ended.value.code == errors.MISTAKE
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        assert "a\\nb\\x1b[31m\\u202ec é" in printed
    assert sys.stdout is not None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(tmp_path: pathlib.Path, value: float) -> None:
    clips = np.random.default_rng(0).integers(0, 256, (4, 5, 16, 16, 3)).astype(np.uint8)
    fitted = linear.fit(clips, linear.LinearConfig(channels=8), seed=0)
    path = tmp_path / "autoencoder.safetensors"
    fitted.save(path)
    with tensor_files.opened(path, fix="") as file:
        metadata, weights = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    weights["group.mean"][3] = value
    safetensors.numpy.save_file(weights, path, metadata=metadata)
    with pytest.raises(UserError, match=r"autoencoder\.safetensors: group\.mean has NaN or infinite values"):
        linear.LinearAutoencoder.load(path)
