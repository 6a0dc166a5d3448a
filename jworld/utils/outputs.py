"""Checks of outputs before hours of work, and the name of what an interrupted command keeps."""

import contextlib
import os
import pathlib
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator

from jworld.utils import errors

#: Free space that a command needs at its output, which holds no more than videos, tables and figures.
LEAST_BYTES = 50_000_000
#: Bytes of a name, of which the file systems allow 255: a file is written under a longer one and then renamed.
NAME_BYTES = 230
_REMOVALS = 20


def check_file(flag: str, path: pathlib.Path, *, least_bytes: int = LEAST_BYTES) -> None:
    """Raise a `UserError` if a file cannot be written at `path`; what is there, and what is missing, stay so."""
    if path.is_symlink() and not path.exists():
        raise errors.UserError(f"{flag} {path} is a link to nothing: give another name")
    if path.is_dir():
        raise errors.UserError(f"{flag} {path} is a folder, expected the name of a file: add a name")
    if path.exists() and not stat.S_ISREG(path.stat().st_mode):
        # Replacing it would delete it, as root even /dev/null.
        raise errors.UserError(f"{flag} {path} is a pipe, a socket or a device, expected a file: give another name")
    if path.exists() and not os.access(path, os.W_OK):
        raise errors.UserError(f"{flag} {path} may not be written by this user: give another name")
    check_folder(flag, path.parent, of=path, least_bytes=least_bytes)


def check_folder(
    flag: str, folder: pathlib.Path, *, of: pathlib.Path | None = None, least_bytes: int = LEAST_BYTES
) -> None:
    """Raise a `UserError` if files cannot be written to `folder`, which need not exist yet; `of` names it in errors."""
    name, place = of or folder, folder.absolute()
    if (length := len(os.fsencode(name.name))) > NAME_BYTES and not name.exists():
        raise errors.UserError(f"{flag} {name} has a name of {length} bytes, expected at most {NAME_BYTES}: shorten it")
    while not place.exists():
        if place.is_symlink():
            raise errors.UserError(f"{flag} {name}: {place} is a link to nothing: give another name")
        place = place.parent
    if not place.is_dir():
        raise errors.UserError(f"{flag} {name}: {place} is not a folder: give another name")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        free = shutil.disk_usage(place).free
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise errors.UserError(
            f"{flag} {name} cannot be written in {place} ({reason}): give another name, or free space"
        ) from error
    if free < least_bytes:
        raise errors.UserError(
            f"{flag} {name}: {place} has {free / 1e6:.0f} MB of free space, expected at least {least_bytes / 1e6:.0f}: "
            "free space, or give another name"
        )


@contextlib.contextmanager
def partial_folder(output: pathlib.Path, *, fix: str) -> Iterator[pathlib.Path]:
    """Yield a temporary folder next to `output`, removed at the end of the block; the caller moves its files out.

    A file that cannot be written is a `UserError`, whose sentence ends with `fix`.
    """
    partial = output.with_name(f".{output.name}.partial")
    made = [parent for parent in partial.parents if not parent.exists()]
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        yield partial
    except OSError as error:
        raise errors.UserError(f"{output} could not be written ({error}): {fix}") from error
    finally:
        _remove(partial)
        for parent in made:
            with contextlib.suppress(OSError):  # unless it contains the output
                parent.rmdir()


def _remove(folder: pathlib.Path) -> None:
    """Remove a folder, to which threads of an interrupted command may still write for a moment."""
    for _ in range(_REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)


def partial(path: pathlib.Path) -> pathlib.Path:
    """Return where the finished part of an interrupted result is kept: a.mp4 -> a.partial.mp4."""
    return path.with_name(f"{path.stem}.partial{path.suffix}")
