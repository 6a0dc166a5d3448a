"""The folder of a training run: which process may write there, and what may be deleted from it."""

import contextlib
import datetime
import json
import os
import pathlib
import shutil
import socket
from collections.abc import Iterator

from jworld.systems import runs
from jworld.training import emergency, goodput, hub, profiling, writers
from jworld.utils import config as run_config
from jworld.utils import errors, files, folder_lock

EVALUATION = "evaluation"
LOCK = ".lock"
#: Bytes of a lock that are read, which hold a host's name, a number and a time.
_LOCK_BYTES = 4096
#: All that a run and the evaluation of its model write into the folder.
WRITTEN = (
    *(runs.CHECKPOINTS, runs.ENCODERS, runs.SAMPLES, EVALUATION, LOCK, run_config.FILE_NAME),
    *(goodput.FILE, writers.FILE, writers.BOARD, profiling.FOLDER, emergency.FILE, "wandb"),
)


def check_deletable(workdir: pathlib.Path) -> None:
    """Check that a folder is absent, empty, or that of a run with nothing else in it.

    Raises:
      UserError: it is something else, which `--overwrite` does not delete.
    """
    if not workdir.exists() and not workdir.is_symlink():
        return
    if not workdir.is_dir():
        raise errors.UserError(f"--workdir {workdir} is not a folder: choose another one")
    found = sorted(path.name for path in workdir.iterdir())
    if not set(found) <= {LOCK} and not _has_config(workdir):
        raise errors.UserError(
            f"--workdir {workdir} holds {_listed(found)} and no {run_config.FILE_NAME} of a run: --overwrite deletes "
            "runs and nothing else; choose another folder"
        )
    others = [name for name in found if name not in WRITTEN and not name.startswith(hub.STAGING)]
    if others:
        raise errors.UserError(
            f"--workdir {workdir} holds {_listed(others)}, which no run writes: move it elsewhere, or choose another "
            "folder; --overwrite deletes what a run wrote and nothing else"
        )


def clear(workdir: pathlib.Path) -> None:
    """Delete what an earlier run wrote, but for the lock; links are removed, and never what they point to.

    Raises:
      UserError: the folder holds something else, or something cannot be deleted.
    """
    check_deletable(workdir)
    if not workdir.is_dir():
        return
    # The config goes last: what an interrupted deletion leaves is still the folder of a run.
    for path in sorted(workdir.iterdir(), key=lambda path: (path.name == run_config.FILE_NAME, path.name)):
        if path.name == LOCK:
            continue
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError as error:
            raise errors.UserError(
                f"--overwrite: {path} could not be deleted ({error}): delete it, or choose another --workdir"
            ) from error


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Hold the folder, which is created, for one process.

    The lock is a file with host, process and start time. The system releases it when the process ends in whatever way,
    so a file that is left over is not in the way.

    Raises:
      UserError: another process holds it, or the folder cannot be written.
    """
    path = workdir / LOCK

    def refuse() -> None:
        raise errors.UserError(
            f"--workdir {workdir} is in use by {_holder(path)}: wait until it ends, or choose another folder"
        )

    try:
        file = folder_lock.acquire(path, refuse)
    except OSError as error:
        raise errors.UserError(f"--workdir {workdir} could not be written ({error}): choose another folder") from error
    try:
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(holder).encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)
        # A run that was refused before its first step leaves no folder.
        for folder in (workdir / runs.CHECKPOINTS, workdir):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _has_config(workdir: pathlib.Path) -> bool:
    try:
        return "system" in files.read_json(workdir / run_config.FILE_NAME)
    except errors.UserError:
        return False


def _holder(path: pathlib.Path) -> str:
    """Describe the process in a lock; its file may be half-written."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_LOCK_BYTES))
        return f"process {int(found['pid'])} on {found['host']}, which started at {found['started']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
