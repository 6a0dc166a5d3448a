"""One process at a time makes a folder."""

import contextlib
import errno
import fcntl
import os
import pathlib
from collections.abc import Iterator

from jworld.utils.errors import UserError

#: What file systems say that have no locks: there nobody waits.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextlib.contextmanager
def making(directory: str | pathlib.Path, *, part: str = "") -> Iterator[None]:
    """Hold the right to make `directory`, or its part of that name; says so and waits while another process holds it.

    Look again inside whether there is anything left to make. The lock is a hidden file beside the folder, which goes
    at the end; the system frees the lock of a process that was killed.

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
            f"{path} could not be written ({error}): free some space, or name another folder than {directory}"
        ) from error
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(file)


def _acquire(path: pathlib.Path, directory: pathlib.Path) -> int:
    """Descriptor of the locked file."""
    told = False
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                print(f"another process is making {directory}, waiting", flush=True)
            told = True
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                os.close(file)
                raise
            return file
        if _is_at(file, path):
            return file
        # The one who had it has removed the file, and somebody else may have made a new one.
        os.close(file)


def _is_at(file: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
