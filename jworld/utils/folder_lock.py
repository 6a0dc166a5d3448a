"""Locks under which one process at a time creates a folder."""

import contextlib
import errno
import fcntl
import os
import pathlib
from collections.abc import Iterator

from jworld.utils.errors import UserError

#: Errors of file systems without locks, where no process waits.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextlib.contextmanager
def making(directory: str | pathlib.Path, *, part: str = "") -> Iterator[None]:
    """Hold the lock for creating `directory`, or its part of that name.

    Prints a line if another process holds it, and waits.

    Inside, check again whether anything is left to create. The lock is a hidden file next to the folder, deleted at the
    end. The system releases the lock of a process that was killed.

    Raises:
      UserError: the lock cannot be written.
    """
    directory = pathlib.Path(os.path.abspath(directory))
    path = directory.with_name(f".{directory.name}{part}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _acquire(path, directory)
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error}): free some space, or choose another folder than {directory}"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _acquire(path: pathlib.Path, directory: pathlib.Path) -> int:
    """Return the descriptor of the locked file."""
    reported = False
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not reported:
                print(f"another process is creating {directory}, waiting", flush=True)
            reported = True
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                os.close(file)
                raise
            return file
        if is_at(file, path):
            return file
        # The previous holder deleted the file, and another process may have created a new one.
        os.close(file)


def is_at(file: int, path: pathlib.Path) -> bool:
    """Return whether an open file is the one that now has this path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
