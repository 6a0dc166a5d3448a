"""Every command on every registered system: success, or one sentence of error."""

import pathlib

import cases
import commands
import numpy as np
import PIL.Image
import pytest
import xla_flags

from jworld import systems
from jworld.systems import runs
from jworld.systems.base import TextSystem, VideoSystem
from jworld.utils import config as run_config

ONE_DEVICE = {"XLA_FLAGS": xla_flags.fast_compilation(1)}
CASES = cases.load()
SYSTEMS = pytest.mark.parametrize("name", list(systems.REGISTRY))


def recipe(name: str) -> str:
    return str(commands.ROOT / "configs" / CASES[name].recipe)


def arguments(name: str, folder: pathlib.Path) -> list[str]:
    """Return the arguments of a run of one step."""
    return [
        f"--config=configs/{CASES[name].recipe}",
        f"--workdir={folder / 'run'}",
        f"--config.data.records={folder / 'records'}",
        f"--config.data.recording.directory={folder / 'episodes'}",
        "--config.steps=1",
        "--config.optimizer.warmup_steps=0",
        *CASES[name].settings,
    ]


def test_every_system_has_a_case() -> None:
    assert CASES.keys() == systems.REGISTRY.keys()


def test_doctor(tmp_path: pathlib.Path) -> None:
    calls = [[f"--config={recipe(name)}"] for name in CASES]
    results = commands.run_in_forks("jworld.doctor", calls, tmp_path / "answers", **ONE_DEVICE)
    for name, result in zip(CASES, results, strict=True):
        assert result.returncode == 0, result.stdout + result.stderr
        attention = systems.create(run_config.load_recipe(recipe(name))).attention_calls()
        for call in attention:
            assert f"attention, {call.name}" in result.stdout
        assert attention or "no backend is chosen" in result.stdout


@SYSTEMS
def test_a_system_is_of_one_kind(name: str) -> None:
    system = systems.create(run_config.load_recipe(recipe(name)))
    assert not (isinstance(system, VideoSystem) and isinstance(system, TextSystem))
    assert system.sections().keys() >= {"loss", "data.clip"}


def test_dry_run(tmp_path: pathlib.Path) -> None:
    calls = [[*arguments(name, tmp_path / name), "--dry-run"] for name in CASES]
    for result in commands.run_in_forks("jworld.train", calls, tmp_path / "answers", **ONE_DEVICE):
        assert result.returncode == 0, result.stdout + result.stderr
        assert "parameters" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["answers"]


@pytest.mark.slow
@SYSTEMS
def test_train_generate_evaluate_plan_and_export(name: str, tmp_path: pathlib.Path) -> None:
    trained = commands.run("jworld.train", *arguments(name, tmp_path), **ONE_DEVICE)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    checkpoint = f"--checkpoint={tmp_path / 'run'}"
    assert trained.stdout.rstrip().endswith(f"next: python -m jworld.evaluate --checkpoint {tmp_path / 'run'}")
    assert any((tmp_path / "run" / runs.SAMPLES).iterdir())

    again = commands.run("jworld.train", *arguments(name, tmp_path), **ONE_DEVICE)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resuming after step 1" in again.stdout

    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    PIL.Image.fromarray(image).save(tmp_path / "first.png")
    places = {"IMAGE": str(tmp_path / "first.png"), "OUT.mp4": str(tmp_path / "out.mp4")}
    request = [places.get(word, word) for word in CASES[name].generate]
    made = commands.run("jworld.generate", checkpoint, *request, **ONE_DEVICE)
    if request:
        assert made.returncode == 0, made.stdout + made.stderr
        assert (tmp_path / "out.mp4").is_file() == ("--out" in request)
    else:
        assert "generates no videos" in commands.one_sentence(made)

    measured = commands.run("jworld.evaluate", checkpoint, *CASES[name].evaluate, **ONE_DEVICE)
    assert measured.returncode == 0, measured.stdout + measured.stderr
    assert (tmp_path / "run" / "evaluation" / "evaluation.json").is_file()

    planned = commands.run("jworld.plan", *arguments(name, tmp_path)[:1], *CASES[name].settings, "--topology=cpu-1")
    assert planned.returncode == 0, planned.stdout + planned.stderr

    exported = commands.run("conversion", "export", str(tmp_path / "run"), "--output", str(tmp_path / "exported"))
    if exported.returncode != 0:
        commands.one_sentence(exported)
