"""The doctor: its output, the problems that it finds, and its exit codes."""

import pathlib

import pytest

from jworld import doctor
from jworld.utils import config as run_config

RECIPE = str(pathlib.Path(__file__).parents[1] / "configs" / "ar_mem.py")


def load(variant: str = "") -> run_config.ml_collections.ConfigDict:
    return run_config.load_recipe(f"{RECIPE}:{variant}" if variant else RECIPE)


def test_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    doctor.main([])
    out = capsys.readouterr().out
    assert "8 x cpu" in out
    assert "flax" in out
    assert "nothing wrong was found" in out


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--help"])
    assert ended.value.code == 0
    assert "--config RECIPE" in capsys.readouterr().out


def test_a_recipe_on_this_machine() -> None:
    rows, problems = doctor.examine(load())
    assert dict(rows) == {
        "mesh": "data=1, fsdp=8, sequence=1",
        "attention, video": "xla, because there is no kernel for the platform 'cpu'",
    }
    assert problems == []


def test_heads_that_do_not_divide() -> None:
    config = load()
    config.mesh.sequence = 8
    rows, _ = doctor.examine(config)
    assert "4 heads do not divide over 8 devices: heads are split 4 ways, and keys move around rings of 2" in rows[1][1]


def test_a_mesh_that_does_not_fit() -> None:
    config = load("8b")
    config.mesh.fsdp = 5
    _, problems = doctor.examine(config)
    assert "config.mesh is data=1, fsdp=5, sequence=4 = 20 devices, but there are 8" in problems[0]


def test_a_gpu_that_jax_does_not_find(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    driver = tmp_path / "version"
    driver.write_text("NVRM version: 570\n")
    monkeypatch.setattr(doctor, "DRIVER", driver)
    with pytest.raises(SystemExit) as ended:
        doctor.main([])
    assert ended.value.code == 1
    assert "there is an NVIDIA driver, but JAX runs on the CPU: install the GPU packages" in capsys.readouterr().out


def test_versions_that_do_not_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", {"jax": "0.10.2", "jaxlib": "0.9.1"}.get)
    assert any("jax 0.10.2 is not compatible with jaxlib 0.9.1" in problem for problem in doctor.find_problems())
