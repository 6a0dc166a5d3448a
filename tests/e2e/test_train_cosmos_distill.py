"""Distillation of Cosmos-Predict2 by its commands: a teacher, a student that is interrupted, few steps, evaluation."""

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


def train(folder: pathlib.Path, recipe: str, workdir: str, *extra: str) -> str:
    """Train one layer of width 48 on 4 short episodes, clips of 13 frames; return the output."""
    sizes = ("--config.model.num_layers=1", "--config.model.num_heads=4", "--config.optimizer.warmup_steps=0")
    arguments = commands.clip_arguments(folder, recipe, workdir, *sizes, *extra)
    result = commands.run("jworld.train", *arguments, **ONE_DEVICE)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_a_student_of_few_steps(tmp_path: pathlib.Path) -> None:
    train(tmp_path, "cosmos_video2world.py:base", "base", "--config.steps=2", "--config.sample.rollout.num_steps=1")
    options = (f"--config.init_from={tmp_path / 'base'}", "--config.critic.updates=2", "--config.checkpoint.interval=2")
    whole = train(tmp_path, "cosmos_distill.py", "whole", *options, "--config.steps=4")
    assert "step 4/4" in whole
    assert "not in those weights" not in whole
    assert (tmp_path / "whole" / runs.SAMPLES / "continuation.png").is_file()
    train(tmp_path, "cosmos_distill.py", "resumed", *options, "--config.steps=2")
    assert "resuming after step 2" in train(tmp_path, "cosmos_distill.py", "resumed", *options, "--config.steps=4")
    found = [commands.checksums(tmp_path / name, 4)["leaves"] for name in ("whole", "resumed")]
    assert {"params", "critic", "ema"} <= found[0].keys()
    assert found[0] == found[1]
    assert found[0] != commands.checksums(tmp_path / "whole", 2)["leaves"]
    frozen = tmp_path / "whole" / runs.CHECKPOINTS / "frozen" / "0" / "checksums" / "metadata"
    assert all(name.startswith("teacher/") for name in json.loads(frozen.read_text()))

    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    PIL.Image.fromarray(image).save(tmp_path / "first.png")
    videos = []
    for steps in ("", "--steps=2"):
        out = tmp_path / f"out{steps}.mp4"
        request = [f"--checkpoint={tmp_path / 'whole'}", f"--image={tmp_path / 'first.png'}", f"--out={out}"]
        made = commands.run("jworld.generate", *request, *([steps] if steps else []), "--windows=2", **ONE_DEVICE)
        assert made.returncode == 0, made.stdout + made.stderr
        videos.append(episodes.read_video(out))
        assert videos[-1].shape == (25, 96, 128, 3)
    assert (videos[0] != videos[1]).any()

    options = (f"--checkpoint={tmp_path / 'whole'}", "--windows=2", "--chunks=1")
    measured = commands.run("jworld.evaluate", *options, **ONE_DEVICE)
    assert measured.returncode == 0, measured.stdout + measured.stderr
    numbers = json.loads((tmp_path / "whole" / "evaluation" / "evaluation.json").read_text())
    assert "given frame repeated" in numbers["gains"]

    refused = commands.run(
        "jworld.generate", f"--checkpoint={tmp_path / 'whole'}", f"--image={tmp_path / 'first.png'}", "--guidance=3"
    )
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "expected 'few_steps' and 0" in refused.stderr
