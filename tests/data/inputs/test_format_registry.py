"""New formats: one registry entry is enough for listing, settings, --help and records."""

import functools
import json
import pathlib

import numpy as np
import pytest
import tiny_videos

from jworld.data import records
from jworld.data.inputs import formats, items
from jworld.data.inputs.base import Format
from jworld.encoders.choices import EncoderOverrides
from jworld.models.autoencoders.linear import LinearConfig
from jworld.precompute import __main__ as precompute
from jworld.precompute import job
from jworld.precompute.settings import Settings
from jworld.utils.errors import UserError

TOKENS = ("stay", "jump", "duck")
WORDS = ["stay", *["jump"] * 4, *["duck"] * 4]


def list_items(path: pathlib.Path, options: items.ListOptions) -> items.Listing:
    """List every .mp4 file with one control token per frame."""

    def read_tracks(frames: int) -> items.Tracks:
        return items.Tracks(controls=items.Controls(tuple(WORDS[:frames])))

    listed = [
        items.Item(name=file.stem, video=file, caption="a wall", controls=file, read_tracks=read_tracks)
        for file in path.glob("*.mp4")
    ]
    return items.finish(listed, [], source=path, options=options)


def read_fact(key: str, path: pathlib.Path) -> object:
    return json.loads((path / "facts.json").read_text())[key]


DUMMY = Format(
    name="dummy",
    help="mp4 files of a dummy",
    list_items=list_items,
    read_fps=functools.partial(read_fact, "rate"),  # type: ignore[arg-type]
    read_source=functools.partial(read_fact, "recorder"),  # type: ignore[arg-type]
    fit="stretch",
    resampling="bilinear",
    control_tokens=TOKENS,
)


@pytest.fixture
def dummy(monkeypatch: pytest.MonkeyPatch) -> Format:
    """Register a format that nothing else mentions."""
    monkeypatch.setitem(formats.FORMATS, DUMMY.name, DUMMY)
    return DUMMY


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Write two videos at 10 frames/s, and a file with their rate and source."""
    directory = tmp_path / "in"
    directory.mkdir()
    for name in "ab":
        tiny_videos.write(directory / f"{name}.mp4", tiny_videos.numbered(len(WORDS)))
    (directory / "facts.json").write_text(json.dumps({"rate": 10.0, "recorder": "a dummy simulator"}))
    return directory


def settings(folder: pathlib.Path, **changes: object) -> Settings:
    sizes = {"width": 16, "height": 8, "linear": LinearConfig(channels=4, spatial_ratio=8), "val_share": 0.0}
    given = EncoderOverrides(text_encoder="hashed-words:4", image_encoder="none")
    return Settings(**{"input": folder, "format": "dummy", "given": given, **sizes, **changes})  # type: ignore[arg-type]


def test_records_follow_the_entry(dummy: Format, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    summary = job.precompute(settings(folder), tmp_path / "out")
    assert summary is not None
    manifest = summary.manifest
    assert (manifest["source"], manifest["fps"]) == ("a dummy simulator", 10.0)
    assert manifest["controls"] == list(TOKENS)
    assert (manifest["cut"]["fit"]["mode"], manifest["cut"]["fit"]["resampling"]) == ("stretch", "bilinear")
    source = records.RecordSource(tmp_path / "out", "train")
    assert [source[i]["control"].tolist() for i in range(len(source))] == [[0, 1, 2]] * 2
    assert source[0]["control"].dtype == np.int32


def test_settings_override_the_defaults(dummy: Format, folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    chosen = settings(folder, fps=5.0, frames=5, fit="crop", resampling="area")
    summary = job.precompute(chosen, tmp_path / "out")
    assert summary is not None
    fit = summary.manifest["cut"]["fit"]
    assert (summary.manifest["fps"], fit["mode"], fit["resampling"]) == (5.0, "crop", "area")


def test_help_lists_the_format(dummy: Format, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        precompute.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "dummy mp4 files of a dummy" in text
    assert "stretch for episodes, stretch for dummy, else crop" in text
    assert "except for episodes, lerobot, dummy" in text


def test_an_unknown_format_and_a_missing_rate_are_refused(folder: pathlib.Path) -> None:
    with pytest.raises(UserError, match="format is 'dummy', expected one of episodes, videos"):
        settings(folder)
    with pytest.raises(UserError, match="videos of format videos may have any frame rate: give --fps"):
        settings(folder, format="videos")
