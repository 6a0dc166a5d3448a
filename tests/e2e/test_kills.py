"""Kills at random moments, in every system and every kind of work: afterwards all is bit-equal, or refused."""

import hashlib
import json
import pathlib
import random
import signal
from collections.abc import Iterator
from typing import Any

import converted
import forks
import pytest

from jworld.systems import runs
from jworld.training import checkpoints, metrics

pytestmark = pytest.mark.e2e

STEPS, INTERVAL, KILLS = 16, 3, 10
RUN = (
    f"--config.steps={STEPS}",
    f"--config.checkpoint.interval={INTERVAL}",
    "--config.checkpoint.max_to_keep=2",
    "--config.log.interval=1",
    "--config.optimizer.warmup_steps=1",
    "--config.global_batch=2",
)


def recording(folder: pathlib.Path, *, frames: int, episodes: int = 4) -> list[str]:
    return [
        f"--config.data.records={folder / 'records'}",
        f"--config.data.recording.directory={folder / 'episodes'}",
        f"--config.data.recording.episodes={episodes}",
        f"--config.data.recording.frames={frames}",
    ]


def cosmos(folder: pathlib.Path) -> list[str]:
    return [
        *recording(folder, frames=41),
        "--config.data.recording.image_size=(64,48)",
        "--config.model.width=48",
        "--config.model.num_layers=1",
        "--config.model.num_heads=4",
        "--config.data.encoding.clip_frames=13",
        "--config.data.clip.window_frames=4",
    ]


def matrix(folder: pathlib.Path) -> list[str]:
    return [
        "--config=configs/matrix_swin_dpm.py",
        *recording(folder, frames=41),
        "--config.data.recording.image_size=(64,48)",
        "--config.model.width=48",
        "--config.model.num_layers=2",
        "--config.model.control_layers=(0,1)",
        "--config.data.encoding.clip_frames=0",
        "--config.data.encoding.autoencoder=",
        "--config.data.clip.window_frames=5",
        "--config.sample.rollout.window_frames=1",
        "--config.sample.actions=D*7,DR*2",
        "--config.init_from=",
    ]


def theworld(folder: pathlib.Path) -> list[str]:
    return [
        "--config=configs/theworld.py",
        *recording(folder, frames=41),
        "--config.data.recording.image_size=(64,48)",
        "--config.data.questions.per_answer=3",
        "--config.data.questions.view_size=(32,24)",
        "--config.model.num_layers=1",
        "--config.model.vision_layers=1",
    ]


def autoencoder(folder: pathlib.Path) -> list[str]:
    return [
        "--config=configs/autoencoder.py",
        *recording(folder, frames=17, episodes=8),
        "--config.data.recording.image_size=(32,24)",
        "--config.data.videos.image_size=(32,24)",
        "--config.data.clip.size=(16,16)",
        "--config.model.latent_channels=4",
        "--config.model.widths=(4,8)",
        "--config.model.spatial_ratio=2",
        "--config.model.temporal_ratio=2",
    ]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Iterator[forks.Launches]:
    with forks.Launches("jworld.train", tmp_path_factory.mktemp("train") / "printed") as launches:
        yield launches


def digests(folder: pathlib.Path) -> dict[str, str]:
    """Return the hash of every file below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def results(run: pathlib.Path) -> object:
    """Return the checksums of all weights and optimizer states of a finished run, and its losses."""
    saved = [run / runs.CHECKPOINTS / str(STEPS), run / runs.CHECKPOINTS / checkpoints.FROZEN / "0"]
    sums = [json.loads((path / "checksums" / "metadata").read_text()) for path in saved if path.is_dir()]
    return sums, [(row["step"], row["loss"]) for row in metrics.read(run) if "loss" in row]


def finish(train: forks.Launches, run: pathlib.Path, arguments: list[str]) -> forks.Ended:
    ended = train.run(*arguments, f"--workdir={run}", *RUN)
    assert ended.code == 0, ended.printed
    return ended


def kill_ten_times(train: forks.Launches, run: pathlib.Path, arguments: list[str], *, seconds: float) -> None:
    """Kill a run at four random times of a launch, and in six steps; then finish it."""
    moments = random.Random(str(run.name))
    kinds = ["time"] * 4 + ["step"] * (KILLS - 4)
    moments.shuffle(kinds)
    for kind in kinds:
        at = forks.after(moments.uniform(0, seconds)) if kind == "time" else None
        ended = train.run(
            *arguments, f"--workdir={run}", *RUN, kill=at or forks.at_step(moments.randint(1, INTERVAL), moments)
        )
        assert ended.code in (-signal.SIGKILL, 0), ended.printed
    finish(train, run, arguments)


def long(*values: object) -> list[Any]:
    return [pytest.param(value, marks=pytest.mark.long) for value in values]


@pytest.mark.parametrize("make", [pytest.param(theworld, marks=pytest.mark.slow), *long(matrix, autoencoder)])
def test_ten_kills_of_a_system(train: forks.Launches, tmp_path: pathlib.Path, make: object) -> None:
    arguments = make(tmp_path)
    # Half of these seconds make the data and compile, which later launches need not do.
    seconds = finish(train, tmp_path / "run", arguments).seconds / 2
    kill_ten_times(train, tmp_path / "killed", arguments, seconds=seconds)
    assert results(tmp_path / "killed") == results(tmp_path / "run")


@pytest.mark.long
def test_ten_kills_of_adapters_on_a_frozen_base(train: forks.Launches, tmp_path: pathlib.Path) -> None:
    base = ["--config=configs/cosmos_video2world.py:base", *cosmos(tmp_path)]
    finish(train, tmp_path / "base", base)
    arguments = ["--config=configs/cosmos_video2world.py:tiny_lora", *cosmos(tmp_path)]
    arguments.append(f"--config.init_from={tmp_path / 'base'}")
    seconds = finish(train, tmp_path / "run", arguments).seconds
    killed = tmp_path / "killed"
    # While the frozen weights are written, and while the first checkpoint is.
    for pattern in (f"{checkpoints.FROZEN}/{checkpoints.PARTIAL}", checkpoints.PARTIAL):
        partial = forks.when(lambda pattern=pattern: list((killed / runs.CHECKPOINTS).glob(pattern)))
        ended = train.run(*arguments, f"--workdir={killed}", *RUN, kill=partial)
        assert ended.code == -signal.SIGKILL, ended.printed
    kill_ten_times(train, killed, arguments, seconds=seconds)
    assert results(killed) == results(tmp_path / "run")

    frozen = max((killed / runs.CHECKPOINTS / checkpoints.FROZEN).rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(frozen.read_bytes())
    content[len(content) // 2] ^= 1
    frozen.write_bytes(content)
    ended = train.run(*arguments, f"--workdir={killed}", *RUN)
    assert ended.code == 2, ended.printed
    (reported,) = [line for line in ended.printed.splitlines() if line.startswith("error: ")]
    assert f"the frozen parameters in {killed / runs.CHECKPOINTS / checkpoints.FROZEN} are damaged" in reported


@pytest.mark.long
def test_kills_while_data_are_made(train: forks.Launches, tmp_path: pathlib.Path) -> None:
    """Recording and precompute: the data set that is there in the end is that of an uninterrupted run."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    arguments = {
        name: ["--config=configs/cosmos_video2world.py:base", *cosmos(tmp_path / name)] for name in ("whole", "killed")
    }
    seconds = finish(train, tmp_path / "whole" / "run", arguments["whole"]).seconds
    moments = random.Random(0)
    folder = tmp_path / "killed"
    patterns = ("*episodes*/*", "*records*/*")
    first = [forks.when(lambda pattern=pattern: list(folder.glob(pattern))) for pattern in patterns]
    for kill in first + [forks.after(moments.uniform(0, seconds / 2)) for _ in range(KILLS - 2)]:
        ended = train.run(*arguments["killed"], f"--workdir={folder / 'run'}", *RUN, kill=kill)
        # Once the data are there, a launch may be done before its time has come.
        assert ended.code in (-signal.SIGKILL, 0), ended.printed
    finish(train, folder / "run", arguments["killed"])
    assert results(folder / "run") == results(tmp_path / "whole" / "run")
    for name in ("episodes", "records"):
        assert digests(folder / name) == digests(tmp_path / "whole" / name)


@pytest.mark.slow
def test_kills_of_import_and_export(tmp_path: pathlib.Path) -> None:
    """A folder or file is whole as soon as it has its name; the same command then makes what it made without kills."""
    source = converted.download(tmp_path / "download", "base")
    whole = {"import": tmp_path / "imported", "export": tmp_path / "exported"}
    moments = random.Random(1)
    with forks.Launches("conversion.__main__", tmp_path / "printed") as launches:
        for action, given in (("import", source), ("export", whole["import"])):
            ended = launches.run(action, str(given), "--output", str(whole[action]))
            assert ended.code == 0, ended.printed
            for i in range(5):
                made = tmp_path / f"{action}-{i}"
                arguments = (action, str(given), "--output", str(made))
                ended_early = launches.run(*arguments, kill=forks.after(moments.uniform(0.3, 1) * ended.seconds))
                assert ended_early.code in (-signal.SIGKILL, 0), ended_early.printed
                if not made.exists():
                    again = launches.run(*arguments)
                    assert again.code == 0, again.printed
                if action == "import":
                    verified = launches.run("verify", str(made), str(source))
                    assert verified.code == 0, verified.printed
                else:
                    assert converted.contents(made) == converted.contents(whole["export"])
