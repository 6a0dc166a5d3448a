"""Several processes that need the same folder: one creates it, the others wait and use it."""

import pathlib
import subprocess
import sys
import threading

import pytest

from jworld.data.recording import episodes, recorder
from jworld.utils import errors, folder_lock

#: Program that takes the lock of argv[1], prints a line, and holds it until its input ends.
HOLD = """
import sys
from jworld.utils import folder_lock
with folder_lock.making(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def hold(directory: pathlib.Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


@pytest.mark.parametrize("killed", [False, True])
def test_the_second_waits_for_the_first(
    killed: bool, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "new" / "data"
    holder = hold(directory)
    entered = threading.Event()

    def second() -> None:
        with folder_lock.making(directory):
            entered.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not entered.wait(0.3)
    if killed:
        holder.kill()
    holder.communicate()
    assert entered.wait(30)
    thread.join()
    assert capsys.readouterr().out == f"another process is creating {directory}, waiting\n"
    assert list(directory.parent.iterdir()) == []


def test_parts_and_other_folders_do_not_wait(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (
        folder_lock.making(tmp_path / "data", part=".0-of-2"),
        folder_lock.making(tmp_path / "data", part=".1-of-2"),
        folder_lock.making(tmp_path / "other"),
    ):
        assert len(list(tmp_path.iterdir())) == 3
    assert capsys.readouterr().out == ""


def test_concurrent_holders_take_turns(tmp_path: pathlib.Path) -> None:
    inside, counts = [0], []

    def one() -> None:
        for _ in range(20):
            with folder_lock.making(tmp_path / "data"):
                inside[0] += 1
                counts.append(inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [1] * 120


def test_errors_inside_propagate_and_release_the_lock(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        with pytest.raises(OSError, match="of the work"), folder_lock.making(tmp_path / "data"):
            raise OSError("of the work")
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.UserError, match="could not be written"), folder_lock.making(tmp_path / "file" / "data"):
        pass


def test_two_recorders_make_one_whole_set(tmp_path: pathlib.Path) -> None:
    manifests = []

    def record() -> None:
        directory = tmp_path / "episodes"
        settings = {"source": "rooms", "episodes": 3, "frames": 17, "width": 32, "height": 24, "workers": 1}
        manifests.append(recorder.record(directory, **settings))

    threads = [threading.Thread(target=record) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert manifests[0] == manifests[1]
    names = [entry["name"] for entry in manifests[0]["episodes"]]
    assert [episodes.read_episode(tmp_path / "episodes", name).name for name in names] == names
    assert [path.name for path in tmp_path.iterdir()] == ["episodes"]
