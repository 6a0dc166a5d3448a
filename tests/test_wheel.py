"""The wheel: its contents, and the commands of an installation in an empty folder."""

import os
import pathlib
import shutil
import site
import subprocess
import sys
import zipfile

import converted
import numpy as np
import PIL.Image
import pytest

import jworld
from jworld.systems import runs

ROOT = pathlib.Path(__file__).parents[1]
#: Files that a build reads, as in a fresh clone.
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "jworld", "conversion", "configs", "assets", "scripts")
LARGEST = 27e6

#: Short episodes of small images: training starts after seconds.
SMALL_DATA = (
    "--config.data.recording.episodes=4",
    "--config.data.recording.frames=121",
    "--config.log.interval=1",
)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Build the wheel of this checkout without a network."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    unwanted = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=unwanted)
        else:
            shutil.copy(path, source / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet")
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", f"--wheel-dir={folder}", str(source)], check=True)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def python(wheel: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Make an environment with the wheel and, through a path file, the present dependencies; -> its interpreter."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    interpreter = folder / "bin" / "python"
    # Path files in the listed folders are not read, so the editable installation is not found.
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", f"--python={interpreter}", "install", "--quiet")
    subprocess.run([*pip, "--no-deps", str(wheel)], check=True)
    return interpreter


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("empty")


def run(folder: pathlib.Path, *command: str | pathlib.Path) -> str:
    """Run a command in `folder` on one device and return its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    result = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    return result.stdout


def test_contents(wheel: pathlib.Path) -> None:
    assert wheel.stat().st_size < LARGEST
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith(".dist-info/entry_points.txt"))
        assert "jworld = jworld.cli:main" in archive.read(entry_points).decode()
        for folder in ("configs", "assets"):
            for path in (ROOT / folder).rglob("*.*"):
                if path.parent.name != "__pycache__":
                    assert archive.read(f"jworld/shipped/{path.relative_to(ROOT)}") == path.read_bytes()
    for folder in ("jworld", "conversion"):
        modules = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")}
        assert modules <= names
    assert "jworld/py.typed" in names
    assert {name.partition("/")[0] for name in names} == {
        "jworld",
        "conversion",
        f"jworld-{jworld.__version__}.dist-info",
    }


def test_the_installation_is_used(python: pathlib.Path, empty: pathlib.Path) -> None:
    code = (
        "import jworld, conversion, jworld.utils.resources as r; print(jworld.__file__, conversion.__file__, r.root())"
    )
    packages = python.parents[1]
    assert all(path.startswith(str(packages)) for path in run(empty, python, "-c", code).split())
    assert run(empty, python.with_name("jworld"), "--version") == f"jworld {jworld.__version__}\n"


def test_a_recipe_of_the_wheel(python: pathlib.Path, empty: pathlib.Path) -> None:
    """A shipped recipe that loads another one works, and a recipe of the user takes precedence."""
    listed = run(empty, python, "-m", "jworld.train", "--config=configs/matrix_scm.py:2b", "--config.list")
    assert "consistency" in listed
    own = empty / "mine" / "configs" / "ar_mem.py"
    own.parent.mkdir(parents=True)
    shipped = (ROOT / "configs" / "ar_mem.py").read_text()
    own.write_text(shipped.replace("config.steps = 100", "config.steps = 123"))
    printed = run(own.parents[1], python, "-m", "jworld.train", "--config=configs/ar_mem.py", "--dry-run")
    assert "123 of global batch" in printed
    assert not (own.parents[1] / "runs").exists()


@pytest.mark.slow
def test_train_and_generate(python: pathlib.Path, empty: pathlib.Path) -> None:
    recipe = ("--config=configs/ar_mem.py", "--config.steps=2", "--config.global_batch=2", *SMALL_DATA)
    printed = run(empty, python, "-m", "jworld.train", *recipe)
    assert "starting from the weights in assets/starter" in printed
    assert (empty / "runs" / "ar_mem" / runs.SAMPLES / "rollout.mp4").is_file()
    first = empty / "first.png"
    PIL.Image.fromarray(np.full((48, 64, 3), 127, np.uint8)).save(first)
    options = ("--image", first, "--pose", "w-3", "--config.sample.rollout.num_steps=1", "--out", "out.mp4")
    run(empty, python, "-m", "jworld.generate", "--checkpoint", "assets/starter", *options)
    assert (empty / "out.mp4").stat().st_size > 0
    # What is shipped is read in place.
    assert not (empty / "assets").exists()


@pytest.mark.slow
def test_conversion(python: pathlib.Path, empty: pathlib.Path) -> None:
    source = converted.download(empty / "download", "base")
    settings = [part for setting in converted.SETTINGS for part in ("--set", setting)]
    run(empty, python, "-m", "conversion", "import", source, "--output", "imported", *settings)
    run(empty, python, "-m", "conversion", "export", "imported", "--output", "exported")
    assert "equal" in run(empty, python.with_name("jworld"), "convert", "verify", "imported", "exported")


@pytest.mark.slow
def test_an_answer_in_text(python: pathlib.Path, empty: pathlib.Path) -> None:
    sizes = ("--config.model.num_layers=1", "--config.model.vision_layers=1", "--config.data.questions.per_answer=3")
    few = (
        "--config.steps=2",
        "--config.global_batch=4",
        "--config.optimizer.warmup_steps=1",
        "--config.sample.questions=2",
    )
    run(empty, python, "-m", "jworld.train", "--config=configs/theworld.py", *SMALL_DATA, *sizes, *few)
    image = empty / "view.png"
    PIL.Image.fromarray(np.full((48, 64, 3), 127, np.uint8)).save(image)
    question = ("--image", image, "--prompt", "What is to the left?", "--out", "answer.json")
    run(empty, python, "-m", "jworld.generate", "--checkpoint", "runs/theworld", *question)
    assert (empty / "answer.json").is_file()
