"""Locks under which one process at a time creates a folder."""

import contextlib
import errno
import fcntl
import os
import pathlib
import stat
from collections.abc import Callable, Iterator

from jworld.utils.errors import UserError

#: First bytes of a lock that names its holder; other locks are empty.
START = b'{"host": '
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

    Raises:
      UserError: something else has the name of the lock, which would be emptied and deleted.
    """
    reported = False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _open(path)
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


def _open(path: pathlib.Path) -> int:
    """Open a lock, or create it; never through a link."""
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    except OSError as error:
        # ELOOP: a link; ENXIO: a socket.
        if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise
        raise UserError(f"{path} is {_kind(path)}, expected a lock, which is a file: move it elsewhere") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise UserError(f"{path} is {_kind(path)}, expected a lock, which is a file: move it elsewhere")
    # A process may have been killed while it wrote.
    if not START.startswith(os.pread(file, len(START), 0)):
        os.close(file)
        raise UserError(f"{path} is a file of another program, expected a lock of jworld: move it elsewhere")
    return file


def _kind(path: pathlib.Path) -> str:
    if path.is_symlink():
        return "a link"
    return "a folder" if path.is_dir() else "a pipe, a socket or a device"


def _is_at(file: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
