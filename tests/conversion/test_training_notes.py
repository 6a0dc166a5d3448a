"""Notes of the import about how a checkpoint was trained, where this differs from the published model of its size."""

import json
import pathlib

import converted
import pytest

from conversion import __main__ as conversion


def imported(folder: pathlib.Path, capsys: pytest.CaptureFixture[str], **changes: str) -> list[str]:
    """Import a base checkpoint whose config.json has these values; -> the notes."""
    download = converted.download(folder / "download", "base")
    config = json.loads((download / "config.json").read_text())
    (download / "config.json").write_text(json.dumps(config | changes))
    conversion.main(["import", str(download), "--output", str(folder / "imported")])
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ") and "trained" in line]


def test_the_published_values_need_no_note(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert imported(tmp_path, capsys, ideal_resolution="480p", attn_mode="flash") == []


def test_another_size_and_sparse_attention_are_noted(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size, attention = imported(tmp_path, capsys, ideal_resolution="720p", attn_mode="flex-block-attn")
    assert "ideal_resolution is '720p', so the weights were trained for another size" in size
    assert "generate with --size 720p" in size
    assert "attn_mode is 'flex-block-attn', so the weights were trained with sparse attention" in attention
