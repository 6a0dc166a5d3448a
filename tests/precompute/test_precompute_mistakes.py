"""Precomputation of bad videos and with wrong settings: one sentence, nothing lost."""

import dataclasses
import json
import pathlib
from typing import Any

import pytest
import tiny_videos
from precompute_inputs import (
    LINEAR,
    SIZE,
    WORDS,
    episode_settings,
    video_arguments,
    video_settings,
    wall,
    write_episodes,
    write_videos,
)

from jworld.data import records
from jworld.data.recording import episodes
from jworld.data.records import shards
from jworld.encoders.choices import EncoderOverrides
from jworld.precompute import __main__ as precompute
from jworld.precompute import job
from jworld.precompute.settings import Settings
from jworld.utils.errors import UserError


def test_a_bad_video_stops_the_command_until_it_is_repaired(tmp_path, autoencoder_path, capsys):
    folder = write_videos(tmp_path / "in", "videos", "abcd")
    good = (folder / "c.mp4").read_bytes()
    (folder / "c.mp4").write_bytes(good[: len(good) // 2])
    tiny_videos.write(folder / "d.mp4", wall(0, 7))
    argv = video_arguments(folder, autoencoder_path, items_per_shard=2)
    skipped, output = tmp_path / "skipped", tmp_path / "set"

    def fails(*extra: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            precompute.main([*argv, *extra])
        assert stopped.value.code == 2
        captured = capsys.readouterr()
        return captured.out + captured.err

    printed = fails(f"--output={output}")
    assert "c.mp4 is damaged or not a video" in printed
    assert "--on-error skip" in printed
    assert not (output / records.MANIFEST).exists()
    assert (output / "train-00000-of-00002.arrow").exists()
    printed = fails(f"--output={skipped}", "--on-error=skip")
    assert f"{skipped}: 2 train, 0 val clips" in printed
    assert f"left out 2 bad videos, see {skipped / 'report.json'}" in printed
    report = json.loads((skipped / shards.REPORT).read_text())
    assert report["items"] == 4
    assert [item["item"] for item in report["skipped"]] == ["c", "d"]
    assert "a clip needs 9" in report["skipped"][1]["reason"]
    fails(f"--output={skipped}")  # it stays incomplete

    (folder / "c.mp4").write_bytes(good)
    tiny_videos.write(folder / "d.mp4", wall(3, len(WORDS)))
    precompute.main([*argv, f"--output={output}"])
    printed = capsys.readouterr().out
    assert "4 train, 0 val clips of 4x3 latents with 24 channels, 7.2 seconds of video, " in printed
    assert "GB per hour" in printed
    assert (
        f"next: python -m jworld.train --config=configs/cosmos_video2world.py:base --config.data.records={output}"
        in printed
    )


def test_a_video_without_caption_is_found_first(tmp_path, autoencoder_path):
    folder = write_videos(tmp_path / "in", "videos")
    (folder / "b.txt").unlink()
    settings = video_settings(folder, autoencoder_path)
    with pytest.raises(UserError, match=r"b\.mp4 has no caption.*1 of 3 videos.*--on-error skip"):
        job.precompute(settings, tmp_path / "set")
    assert not (tmp_path / "set").exists()
    summary = job.precompute(settings, tmp_path / "set", skip_errors=True)
    assert summary.clips["train"] == 2
    assert [item["item"] for item in summary.skipped] == ["b"]
    allowed = dataclasses.replace(settings, allow_missing_captions=True)
    assert job.precompute(allowed, tmp_path / "all").clips["train"] == 3


def refuse(tmp_path: pathlib.Path, settings: dict[str, Any], match: str) -> None:
    with pytest.raises(UserError, match=match):
        job.precompute(Settings(**settings), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_settings(raw, autoencoder_path, tmp_path):
    common: dict[str, Any] = {"input": raw, **SIZE, "linear": LINEAR}
    refuse(tmp_path, {**common, "input": tmp_path / "absent"}, "manifest.json is absent")
    refuse(tmp_path, {**common, "width": 36}, "image size is 36x24, expected multiples of the spatial ratio 8")
    refuse(tmp_path, {**common, "width": None}, "give both --width and --height")
    refuse(tmp_path, {**common, "given": EncoderOverrides(autoencoder=str(tmp_path / "none"))}, "is absent")
    refuse(tmp_path, {**common, "given": EncoderOverrides(text_encoder="bert:x")}, "there is no text encoder 'bert'")
    refuse(tmp_path, {**common, "frames": 12}, "a clip has 12 frames")
    refuse(tmp_path, {**common, "format": "videos"}, "may have any frame rate: give --fps")
    refuse(tmp_path, {**common, "format": "avi"}, "format is 'avi'")
    refuse(tmp_path, {**common, "keep_posterior": True}, "no posterior")
    refuse(tmp_path, {**common, "items_per_shard": 0}, "--items-per-shard is 0")
    everything = write_videos(tmp_path / "in", "videos")
    held_out = {**common, "input": everything, "format": "videos", "fps": 5, "val_share": 1.0}
    refuse(tmp_path, held_out, "no video is in the split 'train'")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        job.precompute(Settings(**common), tmp_path / "file" / "set")


def test_episodes_that_differ_from_their_manifest(tmp_path):
    directory = tmp_path / "raw"
    write_episodes(directory, ["train", "val"])
    manifest = episodes.read_manifest(directory)
    manifest["episodes"][0]["frames"] = 9
    (directory / episodes.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="holds 13 frames, expected 9 by the manifest"):
        job.precompute(episode_settings(directory), tmp_path / "out")
    assert not (tmp_path / "out" / records.MANIFEST).exists()


def test_videos_of_another_rate_than_the_set(raw, tmp_path):
    write_episodes(tmp_path / "raw", ["train", "train"])
    manifest = episodes.read_manifest(tmp_path / "raw")
    (tmp_path / "raw" / episodes.MANIFEST).write_text(json.dumps(manifest | {"fps": 12.0}))
    with pytest.raises(UserError, match="has 8 frames/s, the data set has 12: give --fps"):
        job.precompute(episode_settings(tmp_path / "raw"), tmp_path / "out")


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--fps=1e9", "--fps: expected a number from 0.001 to 1000"),
        ("--fps=nan", "--fps: expected a number from 0.001 to 1000"),
        ("--frames-fps=-3", "--frames-fps: expected a number"),
        ("--threads=0", "--threads: expected an integer from 1 to 1024"),
        ("--seed=-1", "--seed: expected an integer of 32 bits"),
        ("--shard=0/99999999999", "--shard: expected I/N"),
        ("--text-encoder=hashed-words:0", "width '0' of an encoder without weights is not an integer from 1 to 65536"),
        ("--text-encoder=hashed-words:99999999999", "is not an integer from 1 to 65536"),
        ("--width=3200000", "image size is 3200000x2400000, expected at most 134,217,728 pixels"),
    ],
)
def test_absurd_values(tmp_path, autoencoder_path, capsys, option, words):
    given = dict.fromkeys(["--fps=5", "--width=32", f"--height={2400000 if 'width' in option else 24}"])
    name = option.partition("=")[0]
    argv = [text for text in given if not text.startswith(f"{name}=")] + [f"--autoencoder={autoencoder_path}"]
    (tmp_path / "in").mkdir()
    tiny_videos.write(tmp_path / "in" / "a.mp4", wall(0, 12))
    (tmp_path / "in" / "a.txt").write_text("a wall")
    with pytest.raises(SystemExit) as stopped:
        precompute.main(
            [f"--input={tmp_path / 'in'}", "--format=videos", f"--output={tmp_path / 'out'}", *argv, option]
        )
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out" / records.MANIFEST).exists()
