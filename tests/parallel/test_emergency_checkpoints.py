"""Emergency checkpoints of two processes, each with a folder of its own as on two hosts."""

import pathlib
import re
import shutil
import sys
from collections.abc import Callable

import numpy as np
import pytest

from jworld.systems import runs
from jworld.training import emergency

sys.path.append(str(pathlib.Path(__file__).parent))

from toy_processes import finish, parameters, printed, start, wait_until

pytestmark = pytest.mark.e2e

#: Ordinary checkpoints after steps 3, 6 and 9; in memory after 2, 4, 6 and 8.
EVERY = "--config.checkpoint.emergency.every=2"


def memory(folder: pathlib.Path, index: int) -> pathlib.Path:
    return folder / f"memory-{index}"


def launch(folder: pathlib.Path, *extra: str, wait: float = 0.0, processes: int = 2) -> list:
    only = {index: f"--config.checkpoint.emergency.folder={memory(folder, index)}" for index in range(2)}
    extra = (EVERY, *extra) if processes > 1 else (EVERY, only[0], *extra)
    return start(folder, "run", *extra, only=only, wait=wait, processes=processes)


def kill_after(folder: pathlib.Path, started: list, step: int) -> None:
    """Kill all processes once process 0 has printed a step."""
    printed_step = re.compile(rf"^step {step}/9", re.M)
    wait_until(lambda: printed_step.search(printed(folder, "run", 0)) or any(p.poll() is not None for p in started))
    assert all(process.poll() is None for process in started), printed(folder, "run", 0)
    for process in started:
        process.kill()
    finish(started)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("emergency")


@pytest.fixture(scope="module")
def straight(folder: pathlib.Path) -> list[np.ndarray]:
    """Train without interruption and without emergency checkpoints; return the weights."""
    assert finish(start(folder, "straight")) == [0, 0], printed(folder, "straight", 0)
    return parameters(folder / "straight", 9)


@pytest.fixture(scope="module")
def killed(folder: pathlib.Path) -> pathlib.Path:
    """Make a run whose two processes were killed after step 5."""
    (folder / "killed").mkdir()
    kill_after(folder / "killed", launch(folder / "killed", wait=3.0), 5)
    assert (folder / "killed" / "run" / runs.CHECKPOINTS / "3").is_dir()
    for index in range(2):
        files = memory(folder / "killed", index).rglob("*.shards")
        found = sorted(str(path.relative_to(path.parents[1])) for path in files)
        # Its own files, and the copies of the other's.
        assert found == sorted(f"{item}/{seat}.shards" for item in ("2", "4", "frozen") for seat in (0, 1))
    return folder / "killed"


def bucket_away(folder: pathlib.Path) -> None:
    shutil.rmtree(folder / "run" / runs.CHECKPOINTS)


def host_lost(folder: pathlib.Path) -> None:
    bucket_away(folder)
    shutil.rmtree(memory(folder, 1))


def first_host_lost(folder: pathlib.Path) -> None:
    bucket_away(folder)
    shutil.rmtree(memory(folder, 0))


def file_damaged(folder: pathlib.Path) -> None:
    bucket_away(folder)
    (path,) = memory(folder, 0).glob("*/4/0.shards")
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)


def half_written(folder: pathlib.Path) -> None:
    bucket_away(folder)
    for index in range(2):
        (path,) = memory(folder, index).glob("*/4/1.shards")
        path.rename(path.with_name(".1.shards.0123abcd"))


def hosts_exchanged(folder: pathlib.Path) -> None:
    bucket_away(folder)
    memory(folder, 0).rename(folder / "other")
    memory(folder, 1).rename(memory(folder, 0))
    (folder / "other").rename(memory(folder, 1))
    # Each host has only its own file: both processes must fetch theirs.
    for index in range(2):
        for path in memory(folder, index).rglob(f"{index}.shards"):
            path.unlink()


def both_lost(folder: pathlib.Path) -> None:
    for index in range(2):
        shutil.rmtree(memory(folder, index))


@pytest.mark.parametrize(
    "change, step, lines",
    [
        pytest.param(
            host_lost,
            4,
            ["restored step 4 from memory, 1 of 2 processes from the copy on another host"],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            first_host_lost,
            4,
            ["restored step 4 from memory, 1 of 2 processes from the copy on another host"],
            marks=pytest.mark.long,
        ),
        pytest.param(
            file_damaged,
            4,
            [r"damaged in memory: \S*memory-0/\w+/4/0\.shards: its content differs", "1 of 2 processes from the copy"],
            marks=pytest.mark.long,
        ),
        pytest.param(half_written, 2, ["restored step 2 from memory$"], marks=pytest.mark.slow),
        pytest.param(hosts_exchanged, 4, ["restored step 4 from memory, 2 of 2 processes"], marks=pytest.mark.long),
        pytest.param(both_lost, 3, [], marks=pytest.mark.slow),
    ],
)
def test_the_run_continues_from_memory_bit_for_bit(
    folder: pathlib.Path,
    straight: list[np.ndarray],
    killed: pathlib.Path,
    change: Callable[[pathlib.Path], None],
    step: int,
    lines: list[str],
) -> None:
    own = folder / change.__name__
    shutil.copytree(killed, own)
    shutil.rmtree(own / "data")
    (own / "data").symlink_to(killed / "data")
    change(own)
    assert finish(launch(own, f"--config.data.records={killed / 'data'}")) == [0, 0], printed(own, "run", 0)
    output = printed(own, "run", 0)
    assert f"resuming after step {step}\n" in output
    assert ("from memory" in output) == (change is not both_lost)
    for line in lines:
        assert re.search(line, output, re.M), output
    for a, b in zip(parameters(own / "run", 9), straight, strict=True):
        np.testing.assert_array_equal(a, b)
    # A normal end leaves nothing in memory.
    assert not [path for index in range(2) for path in memory(own, index).rglob("*") if path.is_file()]


@pytest.mark.long
def test_overwrite_forgets_what_is_in_memory(folder: pathlib.Path, killed: pathlib.Path) -> None:
    own = folder / "overwritten"
    shutil.copytree(killed, own)
    former = emergency.run_of(own / "run")
    arguments = (f"--config.data.records={killed / 'data'}", "--overwrite")
    kill_after(own, launch(own, *arguments, wait=3.0), 3)
    assert "from memory" not in printed(own, "run", 0)
    assert emergency.run_of(own / "run") != former
    for index in range(2):
        assert [path.name for path in memory(own, index).iterdir()] == [emergency.run_of(own / "run")]


@pytest.mark.slow
def test_one_process_continues_from_memory(folder: pathlib.Path, straight: list[np.ndarray]) -> None:
    own = folder / "one"
    own.mkdir()
    kill_after(own, launch(own, wait=3.0, processes=1), 5)
    shutil.rmtree(own / "run" / runs.CHECKPOINTS)
    assert "without a copy: there is a single host" in printed(own, "run", 0)
    assert finish(launch(own, processes=1)) == [0], printed(own, "run", 0)
    assert "restored step 4 from memory\n" in printed(own, "run", 0)
    assert finish(start(own, "whole", processes=1)) == [0]
    for a, b in zip(parameters(own / "run", 9), parameters(own / "whole", 9), strict=True):
        np.testing.assert_array_equal(a, b)
