"""TheWorld's commands: one stage without world steps, one with them, resumed, asked and evaluated."""

import json
import pathlib
import shutil

import commands
import jax
import numpy as np
import PIL.Image
import pytest
from flax import nnx

from jworld.systems import runs
from jworld.training import metrics
from jworld.utils import config as run_config

pytestmark = pytest.mark.e2e

ONE_DEVICE = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}


def train(folder: pathlib.Path, recipe: str, workdir: str, *extra: str) -> str:
    """Train on 4 short episodes; return the output."""
    result = commands.run(
        "jworld.train",
        f"--config=configs/{recipe}",
        f"--workdir={folder / workdir}",
        f"--config.data.recording.directory={folder / 'episodes'}",
        "--config.data.recording.episodes=4",
        "--config.data.recording.frames=121",
        "--config.data.recording.image_size=(64,48)",
        "--config.data.recording.seed=0",  # The recipes record different sets; here they share one.
        "--config.global_batch=4",
        "--config.log.interval=1",
        "--config.optimizer.warmup_steps=1",
        *extra,
        **ONE_DEVICE,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def asking(folder: pathlib.Path) -> list[str]:
    """A language model of one layer."""
    return [
        f"--config.data.records={folder / 'questions'}",
        "--config.data.questions.per_answer=3",
        "--config.data.questions.view_size=(32,24)",
        "--config.model.num_layers=1",
        "--config.model.vision_layers=1",
        "--config.sample.questions=2",
    ]


@pytest.mark.slow
def test_a_stage_with_world_steps(tmp_path: pathlib.Path) -> None:
    sizes = ("--config.model.width=48", "--config.model.num_layers=2", f"--config.data.records={tmp_path / 'records'}")
    clips = ("--config.data.encoding.clip_frames=13", "--config.data.clip.window_frames=4")
    train(tmp_path, "cosmos_video2world.py:base", "cosmos", *sizes, *clips, "--config.steps=3")
    train(tmp_path, "theworld.py", "plain", *asking(tmp_path), "--config.steps=2")
    stage = [
        *asking(tmp_path),
        f"--config.init_from={tmp_path / 'plain'}",
        f"--config.model.world.predictor={tmp_path / 'cosmos'}",
        "--config.steps=4",
        "--config.checkpoint.interval=2",
    ]
    told = train(tmp_path, "theworld.py:tiny_steps", "stage", *stage)
    assert f"the weights of the predictor are those in {tmp_path / 'cosmos'}" in told
    assert "not in those weights, so new: world/temporal" in told

    saved = tmp_path / "stage" / runs.CHECKPOINTS
    checksums = [saved / "4" / "checksums" / "metadata", saved / "frozen" / "0" / "checksums" / "metadata"]
    trained = json.loads(checksums[0].read_text())["leaves"]["params"]
    assert "world/temporal" in trained
    assert not [name for name in trained if name.startswith("predictor/")]
    assert [name for name in json.loads(checksums[1].read_text()) if name.startswith("predictor/")]

    losses, sums = [row["loss"] for row in metrics.read(tmp_path / "stage")], checksums[0].read_text()
    shutil.rmtree(saved / "4")
    assert "resuming after step 2" in train(tmp_path, "theworld.py:tiny_steps", "stage", *stage)
    assert [row["loss"] for row in metrics.read(tmp_path / "stage")] == losses
    assert checksums[0].read_text() == sums

    own, other = (runs.load_model(tmp_path / name, run_config.load(tmp_path / name))[0] for name in ("stage", "cosmos"))
    for a, b in zip(*(jax.tree.leaves(nnx.state(x, nnx.Param)) for x in (own.predictor, other)), strict=True):
        np.testing.assert_array_equal(a, b)
    # The run needs its predictor's folder no more.
    shutil.rmtree(tmp_path / "cosmos")
    image = np.random.default_rng(0).integers(0, 256, (48, 130, 3), dtype=np.uint8)
    PIL.Image.fromarray(image).save(tmp_path / "image.png")
    checkpoint = f"--checkpoint={tmp_path / 'stage'}"
    question = f"--image={tmp_path / 'image.png'}", "--prompt=which view looks further to the left?"
    answered = commands.run("jworld.generate", checkpoint, *question, **ONE_DEVICE)
    assert answered.returncode == 0, answered.stdout + answered.stderr
    asked = commands.run("jworld.evaluate", checkpoint, "--limit=4", **ONE_DEVICE)
    assert asked.returncode == 0, asked.stdout + asked.stderr
    numbers = json.loads((tmp_path / "stage" / "evaluation" / "evaluation.json").read_text())
    assert list(numbers["scores"]) == ["with world steps", "with world", "without"]
