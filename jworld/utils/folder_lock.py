"""Locks under which one process at a time creates a folder."""

import contextlib
import errno
import fcntl
import os
import pathlib
from collections.abc import Callable, Iterator

from jworld.utils.errors import UserError

#: Errors of file systems without locks, where no process waits.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


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
        file = acquire(path, lambda: print(f"another process is creating {directory}, waiting", flush=True))
    except OSError as error:
        raise UserError(
            f"{path} could not be written ({error}): free some space, or choose another folder than {directory}"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def acquire(path: pathlib.Path, busy: Callable[[], object]) -> int:
    """Create and lock a file, and return its descriptor.

    If another process holds the lock, `busy` is called once, which may raise; then the lock is waited for. A file
    system without locks has no effect.
    """
    reported = False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            try:
                if not reported:
                    busy()
                reported = True
                fcntl.flock(file, fcntl.LOCK_EX)
            except BaseException:
                os.close(file)
                raise
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(file)
                raise
            return file
        if _is_at(file, path):
            return file
        # The previous holder deleted the file, and another process may have created a new one.
        os.close(file)


def _is_at(file: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
