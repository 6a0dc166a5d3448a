"""The Matrix' stages as commands: base, adapters, control adapter, a clip with controls; a stream and its student."""

import json
import pathlib

import commands
import pytest
import xla_flags

from jworld.data.recording import episodes
from jworld.systems import runs

pytestmark = pytest.mark.e2e

ONE_DEVICE = {"XLA_FLAGS": xla_flags.fast_compilation(1)}


def train(folder: pathlib.Path, recipe: str, workdir: str, *extra: str) -> str:
    """Train 2 layers of width 48 on 4 short episodes, clips of 13 frames; return the output."""
    sizes = ("--config.model.num_layers=2", "--config.steps=3")
    others = ("--config.sample.rollout.num_steps=4", "--config.optimizer.warmup_steps=1")
    arguments = commands.clip_arguments(folder, recipe, workdir, *sizes, *others, *extra)
    result = commands.run("jworld.train", *arguments, **ONE_DEVICE)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "step 3/3" in result.stdout
    return result.stdout


@pytest.mark.long
def test_two_stages_and_a_steered_clip(tmp_path: pathlib.Path) -> None:
    train(tmp_path, "matrix_lora.py:base", "base")
    adapted = train(tmp_path, "matrix_lora.py", "stage1", f"--config.init_from={tmp_path / 'base'}")
    assert "not in those weights, so new: blocks/attention/" in adapted
    assert (tmp_path / "stage1" / runs.SAMPLES / "clip.png").is_file()
    control = ("--config.model.control_layers=(1,2)", f"--config.init_from={tmp_path / 'stage1'}")
    steered = train(tmp_path, "matrix_control.py", "stage2", *control)
    assert "adapters in those weights are merged" in steered
    assert "not in those weights, so new: control_blocks/" in steered
    names = commands.checksums(tmp_path / "stage2", 3)["leaves"]["params"]
    assert names
    assert all(name.startswith("control_") for name in names)

    out = tmp_path / "out.mp4"
    made = commands.run(
        "jworld.generate",
        f"--checkpoint={tmp_path / 'stage2'}",
        "--prompt=red and golden walls",
        "--actions=D*2,DR",
        f"--out={out}",
        **ONE_DEVICE,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert episodes.read_video(out).shape == (13, 96, 128, 3)
    assert json.loads(out.with_suffix(".json").read_text())["chunks"] == [{"start": 0, "stop": 13, "action": "D*2, DR"}]

    measured = commands.run(
        "jworld.evaluate", f"--checkpoint={tmp_path / 'stage2'}", "--windows=2", "--chunks=2", **ONE_DEVICE
    )
    assert measured.returncode == 0, measured.stdout + measured.stderr
    numbers = json.loads((tmp_path / "stage2" / "evaluation" / "evaluation.json").read_text())
    assert numbers["gains"].keys() == {"first frame repeated", "left and right swapped"}
    assert len(numbers["psnr_per_part"]["model"]) == 2


@pytest.mark.long
def test_a_stream_and_its_student(tmp_path: pathlib.Path) -> None:
    whole = (
        "--config.data.encoding.clip_frames=0",
        "--config.data.clip.window_frames=5",
        "--config.model.control_layers=(0,1)",
        "--config.sample.rollout.window_frames=1",
        "--config.sample.actions=D*7,DR*2",
    )
    train(tmp_path, "matrix_swin_dpm.py", "stage3", "--config.init_from=", *whole)
    assert (tmp_path / "stage3" / runs.SAMPLES / "stream.png").is_file()
    taught = train(tmp_path, "matrix_scm.py", "stage4", f"--config.init_from={tmp_path / 'stage3'}", *whole)
    assert "not in those weights" not in taught
    frozen = tmp_path / "stage4" / runs.CHECKPOINTS / "frozen" / "0" / "checksums" / "metadata"
    assert all(name.startswith("teacher/") for name in json.loads(frozen.read_text()))

    out, picture = tmp_path / "out.mp4", tmp_path / "stage3" / runs.SAMPLES / "stream.png"
    request = [f"--checkpoint={tmp_path / 'stage4'}", f"--image={picture}", f"--out={out}", "--stream"]
    made = commands.run("jworld.generate", *request, "--actions=D*5,NL*3", **ONE_DEVICE)
    assert made.returncode == 0, made.stdout + made.stderr
    assert episodes.read_video(out).shape == (32, 96, 128, 3)
    chunks = json.loads(out.with_suffix(".json").read_text())["chunks"]
    assert [chunk["action"] for chunk in chunks] == ["D"] * 5 + ["NL"] * 3
    refused = commands.run("jworld.generate", *request, "--actions=D*5,UP", **ONE_DEVICE)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "found 'UP'" in refused.stderr

    measured = commands.run(
        "jworld.evaluate", f"--checkpoint={tmp_path / 'stage4'}", "--windows=2", "--chunks=2", **ONE_DEVICE
    )
    assert measured.returncode == 0, measured.stdout + measured.stderr
    numbers = json.loads((tmp_path / "stage4" / "evaluation" / "evaluation.json").read_text())
    assert len(numbers["psnr_per_part"]["model"]) == 2
    assert {"to_teacher, student", "to_teacher, teacher in few steps"} <= numbers.keys()


@pytest.mark.slow
def test_a_student_of_its_own_stream(tmp_path: pathlib.Path) -> None:
    """Stage 4 by distribution matching: windows of 5 latents that move by 4 along examples of 9."""
    whole = (
        "--config.data.encoding.clip_frames=0",
        "--config.model.num_layers=1",
        "--config.model.control_layers=(0,1)",
        "--config.sample.rollout.window_frames=1",
        "--config.sample.actions=D*7,DR*2",
    )
    window = "--config.data.clip.window_frames"
    train(tmp_path, "matrix_swin_dpm.py", "stage3", "--config.init_from=", f"{window}=5", *whole)
    student = (f"--config.init_from={tmp_path / 'stage3'}", f"{window}=9", "--config.critic.updates=1")
    taught = train(tmp_path, "matrix_scm.py:matching", "stage4", *student, *whole)
    assert "not in those weights" not in taught
    leaves = commands.checksums(tmp_path / "stage4", 3)["leaves"]
    assert leaves["critic"]
    assert not any(name.startswith(("teacher/", "critic/")) for name in leaves["params"])
    out, picture = tmp_path / "out.mp4", tmp_path / "stage3" / runs.SAMPLES / "stream.png"
    request = [f"--checkpoint={tmp_path / 'stage4'}", f"--image={picture}", f"--out={out}"]
    made = commands.run("jworld.generate", *request, "--actions=D*5,NL*3", **ONE_DEVICE)
    assert made.returncode == 0, made.stdout + made.stderr
    assert episodes.read_video(out).shape == (32, 96, 128, 3)
    options = (f"--checkpoint={tmp_path / 'stage4'}", "--windows=2", "--chunks=2")
    measured = commands.run("jworld.evaluate", *options, **ONE_DEVICE)
    assert measured.returncode == 0, measured.stdout + measured.stderr
    numbers = json.loads((tmp_path / "stage4" / "evaluation" / "evaluation.json").read_text())
    assert {"to_teacher, student", "to_teacher, teacher in few steps"} <= numbers.keys()
