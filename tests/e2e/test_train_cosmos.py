"""Cosmos-Predict2's commands: train on the embedded data, adapt the result, continue an image."""

import json
import pathlib

import commands
import numpy as np
import PIL.Image
import pytest

from jworld.data.recording import episodes
from jworld.systems import runs

pytestmark = pytest.mark.e2e

ONE_DEVICE = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


def arguments(folder: pathlib.Path, variant: str, workdir: str, *extra: str) -> list[str]:
    """Return arguments: 2 layers of width 48 on 4 short episodes, clips of 13 frames."""
    sizes = ("--config.model.num_layers=2", "--config.model.num_heads=4", "--config.steps=3")
    others = ("--config.sample.rollout.num_steps=2", "--config.optimizer.warmup_steps=1")
    return commands.clip_arguments(folder, f"cosmos_video2world.py:{variant}", workdir, *sizes, *others, *extra)


@pytest.mark.slow
def test_train_adapt_and_continue(tmp_path: pathlib.Path) -> None:
    trained = commands.run("jworld.train", *arguments(tmp_path, "base", "base"), **ONE_DEVICE)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert "step 3/3" in trained.stdout
    assert (tmp_path / "base" / runs.SAMPLES / "continuation.png").is_file()

    base = f"--config.init_from={tmp_path / 'base'}"
    adapted = commands.run("jworld.train", *arguments(tmp_path, "tiny_lora", "adapted", base), **ONE_DEVICE)
    assert adapted.returncode == 0, adapted.stdout + adapted.stderr
    assert "not in those weights, so new: blocks/" in adapted.stdout
    checkpoint = tmp_path / "adapted" / runs.CHECKPOINTS / "3"
    saved = json.loads((checkpoint / "checksums" / "metadata").read_text())["leaves"]["params"]
    assert saved
    assert all(name.split("/")[-2] == "lora" for name in saved)

    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    PIL.Image.fromarray(image).save(tmp_path / "first.png")
    out = tmp_path / "out.mp4"
    made = commands.run(
        "jworld.generate",
        f"--checkpoint={tmp_path / 'adapted'}",
        f"--image={tmp_path / 'first.png'}",
        "--windows=2",
        f"--out={out}",
        **ONE_DEVICE,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert episodes.read_video(out).shape == (25, 96, 128, 3)
    assert [chunk["stop"] for chunk in json.loads(out.with_suffix(".json").read_text())["chunks"]] == [13, 25]
