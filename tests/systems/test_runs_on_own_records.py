"""The command on records of the user: epochs, an autoencoder that is elsewhere, and another data set in their place."""

import json
import pathlib
import shutil

import commands
import own_records
import pytest
import tiny_videos

from jworld.data import records

ONE_DEVICE = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


def make_set(raw: pathlib.Path, *, first: int, autoencoder: pathlib.Path | None = None) -> pathlib.Path:
    """Encode six videos that begin with the frame `first`, half of them held out."""
    raw.mkdir()
    for name in "abcdef":
        tiny_videos.write(raw / f"{name}.mp4", tiny_videos.numbered(24 + first)[first:], fps=10)
    entries = [{"path": f"{name}.mp4", "caption": "a road"} for name in "abcdef"]
    given = None if autoencoder is None else str(autoencoder)
    return own_records.encode(raw, entries, val_share=0.5, autoencoder=given)


def arguments(folder: pathlib.Path, *extra: str) -> list[str]:
    return [
        *own_records.COSMOS,
        f"--workdir={folder / 'run'}",
        f"--config.data.records={folder / 'records'}",
        "--config.sample.rollout.num_steps=1",
        "--config.epochs=1.5",
        *extra,
    ]


@pytest.mark.slow
def test_epochs_encoders_and_another_data_set(tmp_path: pathlib.Path) -> None:
    before = commands.run("jworld.train", *arguments(tmp_path, "--dry-run"), **ONE_DEVICE)
    assert before.returncode == 0, before.stderr
    assert "1.5 epochs" in before.stdout
    assert "records is not made yet" in before.stdout.replace("\n", " ")

    made = make_set(tmp_path / "first", first=0)
    shutil.copytree(made, tmp_path / "records")
    count = sum(shard["records"] for shard in records.read_manifest(made)["splits"]["train"])
    steps = int(1.5 * count) // 2
    dry = commands.run("jworld.train", *arguments(tmp_path, "--dry-run"), **ONE_DEVICE)
    assert f"{steps} of global batch 2, 1.5 epochs" in dry.stdout, dry.stdout + dry.stderr

    (tmp_path / "records" / records.AUTOENCODER_FILE).rename(tmp_path / "autoencoder.safetensors")
    first = commands.run("jworld.train", *arguments(tmp_path), **ONE_DEVICE)
    assert first.returncode == 0, first.stdout + first.stderr
    assert f"trained {steps} steps" in first.stdout
    assert "or to jworld.train --config.sample.encoders.autoencoder=FILE" in first.stdout
    assert "next: " not in first.stdout
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (saved["steps"], saved["epochs"]) == (steps, 1.5)

    key = f"--config.sample.encoders.autoencoder={tmp_path / 'autoencoder.safetensors'}"
    again = commands.run("jworld.train", *arguments(tmp_path, key), **ONE_DEVICE)
    assert again.returncode == 0, again.stdout + again.stderr
    assert (tmp_path / "run" / "samples" / "continuation.mp4").is_file()
    assert "next: python -m jworld.evaluate" in again.stdout

    other = make_set(tmp_path / "second", first=5, autoencoder=tmp_path / "autoencoder.safetensors")
    shutil.rmtree(tmp_path / "records")
    shutil.copytree(other, tmp_path / "records")
    refused = commands.one_sentence(commands.run("jworld.train", *arguments(tmp_path), **ONE_DEVICE))
    assert "the run trained on the data set" in refused
    assert "--accept-data" in refused
    accepted = commands.run("jworld.train", *arguments(tmp_path, "--accept-data"), **ONE_DEVICE)
    assert accepted.returncode == 0, accepted.stdout + accepted.stderr
    assert "continuing with the data set" in accepted.stdout
