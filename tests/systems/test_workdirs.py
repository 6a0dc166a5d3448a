"""The folder of a run: what --overwrite deletes and refuses, links, and a second process in the same folder."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from jworld.systems import workdirs
from jworld.utils import config as run_config
from jworld.utils import folder_lock
from jworld.utils.errors import UserError

RUN = ("checkpoints/100/params", "encoders/manifest.json", "metrics.jsonl", "samples/rollout.mp4", "tensorboard/events")


def make_run(folder: pathlib.Path) -> pathlib.Path:
    for name in RUN:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("written by a run")
    (folder / run_config.FILE_NAME).write_text(json.dumps({"system": "worldplay"}))
    return folder


def files_in(folder: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_run_is_deleted_and_its_lock_stays(tmp_path: pathlib.Path) -> None:
    folder = make_run(tmp_path / "run")
    with workdirs.locked(folder):
        workdirs.clear(folder)
        assert files_in(folder) == [workdirs.LOCK]
    workdirs.clear(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    workdirs.clear(empty)
    assert empty.is_dir()


@pytest.mark.parametrize(
    "name, message",
    [("notes.txt", "holds notes.txt, which no run writes"), ("data/clip.mp4", "holds data, which no run writes")],
)
def test_a_run_with_other_files_is_refused_whole(tmp_path: pathlib.Path, name: str, message: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    before = files_in(folder)
    with pytest.raises(UserError, match=message):
        workdirs.clear(folder)
    assert files_in(folder) == before


def test_what_is_not_a_run_is_refused(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "thesis"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "chapter.txt").write_text("mine")
    with pytest.raises(
        UserError, match=r"holds checkpoints and no config\.json of a run: --overwrite deletes runs and"
    ):
        workdirs.clear(folder)
    (folder / "config.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"and no config\.json of a run"):
        workdirs.clear(folder)
    assert files_in(folder) == ["checkpoints/chapter.txt", "config.json"]
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UserError, match="is not a folder"):
        workdirs.clear(file)


def test_links_are_removed_and_their_targets_kept(tmp_path: pathlib.Path) -> None:
    folder, outside = make_run(tmp_path / "run"), tmp_path / "outside"
    outside.mkdir()
    (outside / "video.mp4").write_text("mine")
    (folder / "evaluation").symlink_to(outside)
    workdirs.clear(folder)
    assert files_in(folder) == []
    assert files_in(outside) == ["video.mp4"]


def test_a_linked_folder_is_cleared_where_it_is(tmp_path: pathlib.Path) -> None:
    folder = make_run(tmp_path / "disk" / "run")
    link = tmp_path / "run"
    link.symlink_to(folder)
    workdirs.clear(link)
    assert link.is_symlink()
    assert files_in(folder) == []


def test_a_failed_deletion_is_an_error(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run")

    def fail(path: pathlib.Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("shutil.rmtree", fail)
    with pytest.raises(UserError, match="checkpoints could not be deleted"):
        workdirs.clear(folder)
    assert (folder / run_config.FILE_NAME).is_file()


HOLD = """
import pathlib, sys, time
from jworld.systems import workdirs
with workdirs.locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: pathlib.Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_one_ends(
    tmp_path: pathlib.Path, holder: subprocess.Popen[str]
) -> None:
    folder = tmp_path / "run"
    expected = rf"is in use by process {holder.pid} on .+, which started at \d{{4}}-.+: wait until it ends"
    with pytest.raises(UserError, match=expected), workdirs.locked(folder):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with workdirs.locked(folder):
        assert json.loads((folder / workdirs.LOCK).read_text())["pid"] == os.getpid()
    # Nothing was written.
    assert not folder.exists()


def test_a_folder_that_cannot_be_made(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"), workdirs.locked(tmp_path / "file" / "run"):
        pass


def _link(path: pathlib.Path) -> None:
    target = path.parent / "kept"
    target.write_text("kept")
    path.symlink_to(target)


#: What may have the name of a lock, how it is made, and its name in the error.
NO_LOCKS: dict[str, tuple[Callable[[pathlib.Path], object], str]] = {
    "folder": (pathlib.Path.mkdir, "is a folder, expected a lock"),
    "link": (_link, "is a link, expected a lock"),
    "link to nothing": (lambda path: path.symlink_to(path.parent / "none"), "is a link, expected a lock"),
    "loop": (lambda path: path.symlink_to(path.name), "is a link, expected a lock"),
    "pipe": (os.mkfifo, "is a pipe, a socket or a device, expected a lock"),
    "other file": (lambda path: path.write_text("npm"), "is a file of another program, expected a lock of jworld"),
}


@pytest.mark.parametrize("kind", NO_LOCKS)
def test_what_is_not_a_lock_is_refused_and_kept(tmp_path: pathlib.Path, kind: str) -> None:
    make, message = NO_LOCKS[kind]
    make(tmp_path / workdirs.LOCK)
    before = sorted(path.name for path in tmp_path.iterdir()), files_in(tmp_path)
    with pytest.raises(UserError, match=rf"{workdirs.LOCK} {message}"), workdirs.locked(tmp_path):
        pass
    with pytest.raises(UserError, match=message):
        folder_lock.acquire(tmp_path / workdirs.LOCK, lambda: None)
    assert (sorted(path.name for path in tmp_path.iterdir()), files_in(tmp_path)) == before
    assert not (tmp_path / "kept").exists() or (tmp_path / "kept").read_text() == "kept"


@pytest.mark.parametrize("text", ["", '{"host": ', '{"host": "other", "pid": 1, "started": "2020-01-01"}', '{"ho'])
def test_a_lock_that_was_left_is_not_in_the_way(tmp_path: pathlib.Path, text: str) -> None:
    """Locks of a dead process, of another machine, and half-written ones."""
    (tmp_path / workdirs.LOCK).write_text(text)
    with workdirs.locked(tmp_path):
        assert json.loads((tmp_path / workdirs.LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / workdirs.LOCK).exists()


@pytest.mark.parametrize("text", ["", "text", "[1]", '{"host": 1}', "[" * 100_000, "\x00" * 100_000])
def test_a_held_lock_that_names_nobody(tmp_path: pathlib.Path, holder: subprocess.Popen[str], text: str) -> None:
    folder = tmp_path / "run"
    # Not replaced: the holder has this file open.
    with (folder / workdirs.LOCK).open("r+") as file:
        file.truncate()
        file.write(text)
    message = "is in use by another process: wait|is a file of another program"
    with pytest.raises(UserError, match=message), workdirs.locked(folder):
        pass
    assert (folder / workdirs.LOCK).read_text() == text


def test_a_run_that_is_refused_before_its_first_save_leaves_no_folder(tmp_path: pathlib.Path) -> None:
    with contextlib.suppress(UserError), workdirs.locked(tmp_path / "run"):
        (tmp_path / "run" / "checkpoints").mkdir()
        raise UserError("no")
    assert not (tmp_path / "run").exists()
