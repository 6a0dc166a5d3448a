"""Training on data sets without a held-out part, of the systems that keep their own: it ends well and says so."""

import json
import pathlib

import commands
import numpy as np
import PIL.Image
import pytest
import tiny_videos
from cases import autoencoder, theworld

pytestmark = [pytest.mark.slow, pytest.mark.e2e]


def train(folder: pathlib.Path, recipe: str, *settings: str) -> str:
    """Train for one step, twice, and return what the second command prints."""
    arguments = [
        f"--config=configs/{recipe}",
        f"--workdir={folder / 'run'}",
        f"--config.data.records={folder / 'records'}",
        "--config.data.recording.source=",
        "--config.steps=1",
        "--config.optimizer.warmup_steps=0",
    ]
    for _ in range(2):
        made = commands.run("jworld.train", *settings, *arguments, XLA_FLAGS="--xla_force_host_platform_device_count=1")
        assert made.returncode == 0, made.stdout + made.stderr
        assert "next: " not in made.stdout
    measured = commands.run("jworld.evaluate", f"--checkpoint={folder / 'run'}")
    assert "split 'val' has no" in commands.one_sentence(measured)
    return made.stdout


def test_conversations(tmp_path: pathlib.Path) -> None:
    (tmp_path / "images").mkdir()
    rows = []
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        turns = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A wall."}]
        rows.append({"id": str(number), "image": f"{number}.png", "conversations": turns})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    text = train(
        tmp_path,
        theworld.CASE.recipe,
        *theworld.CASE.settings,
        "--config.data.conversations.format=llava",
        f"--config.data.conversations.path={tmp_path / 'rows.json'}",
        f"--config.data.conversations.images={tmp_path / 'images'}",
        "--config.data.conversations.val_share=0.0",
    )
    assert "no answers: " in text
    assert "split 'val' has no conversations" in text


def test_frames(tmp_path: pathlib.Path) -> None:
    for name in "ab":
        tiny_videos.write(tmp_path / "videos" / f"{name}.mp4", tiny_videos.numbered(17, width=64, height=48))
        (tmp_path / "videos" / f"{name}.txt").write_text("a caption")
    text = train(
        tmp_path,
        autoencoder.CASE.recipe,
        *autoencoder.CASE.settings,
        "--config.global_batch=2",
        "--config.data.videos.format=videos",
        f"--config.data.videos.path={tmp_path / 'videos'}",
        "--config.data.videos.val_share=0.0",
    )
    assert "no reconstruction: " in text
    assert "split 'val' has no videos" in text
