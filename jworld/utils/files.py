"""Files as a whole: written atomically, and read within limits with one sentence for each mistake."""

import contextlib
import errno
import json
import os
import pathlib
import secrets
import shutil
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO

from jworld.utils import errors, limits, placeholders

#: Files that the program was started with, which may be pipes.
_STREAMS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
#: Names of JSON's types in messages.
_KINDS = {dict: "object", list: "list", str: "text", bool: "truth value", int: "number", float: "number"}


@contextlib.contextmanager
def replacing(path: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield a temporary path that becomes `path` if the body succeeds and is deleted otherwise.

    Processes that write the same file do not interfere. The file has the usual rights of new files: safetensors makes
    files that only their owner can read.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        # A write to an open file that fails, as on a full disk, does not name the file.
        if error.errno in errors.DISK_FULL and error.filename is None:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """Return the rights that new files of this process lack; they can be read only by setting them."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
    """Copy a file, whose copy is complete or absent.

    Raises:
      UserError: it cannot be read, or the copy cannot be written.
    """
    try:
        with replacing(target) as temporary:
            shutil.copyfile(source, temporary)
    except OSError as error:
        reason = error.strerror or errors.one_line(error)
        raise errors.UserError(
            f"{source} cannot be copied to {target} ({reason}): make it readable, or free space"
        ) from error


def write_json(
    path: str | pathlib.Path, value: Any, *, indent: int | None = 1, sort_keys: bool = False, allow_nan: bool = True
) -> None:
    """Write a value as JSON; without `allow_nan` a number that is not finite raises a ValueError."""
    text = json.dumps(value, indent=indent, sort_keys=sort_keys, allow_nan=allow_nan)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_bytes(
    path: str | pathlib.Path, *, name: str = "", fix: str = "correct the path", limit: int = limits.TEXT_BYTES
) -> bytes:
    """Return the content of a file.

    Args:
      path: the file; a pipe such as /dev/stdin is read to its end.
      name: the file in errors, such as "--batch FILE" (default: its path).
      fix: what to do about an error, the end of the sentence.
      limit: largest number of bytes.

    Raises:
      UserError: the file is absent, a folder, unreadable or larger than `limit`.
    """
    path, name = pathlib.Path(path), name or str(path)
    try:
        with open_binary(path) as file:
            size = os.fstat(file.fileno()).st_size
            content = b"" if size > limit else file.read(limit + 1)
    except OSError as error:
        raise errors.UserError(f"{name} {problem(error)}: {fix}") from error
    if max(size, len(content)) > limit:
        raise errors.UserError(f"{name} has more than {limit:,} bytes, the limit for such a file: {fix}")
    return content


def open_binary(path: str | pathlib.Path, *, buffering: int = -1) -> BinaryIO:
    """Open a file for reading, without waiting for the other end of a named pipe.

    Raises:
      OSError: it cannot be opened, or is a pipe, a socket or a device and not one of `_STREAMS`, such as /dev/stdin.
    """
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not (str(path).startswith(_STREAMS) or _is_file_or_folder(os.fstat(number))):
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), str(path))
        os.set_blocking(number, True)
        return open(number, "rb", buffering=buffering)
    except BaseException:
        os.close(number)
        raise


def refuse_devices(path: pathlib.Path) -> None:
    """Raise an OSError if a path, which a library opens by its name, is a pipe, a socket or a device, or is absent."""
    if not _is_file_or_folder(path.stat()):
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO), str(path))


def _is_file_or_folder(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)


def problem(error: OSError) -> str:
    """Return what is wrong with a file that cannot be read, as the end of a sentence after its name."""
    reasons = {
        errno.ENOENT: "is absent",
        errno.ENOTDIR: "is absent, because a part of its path is a file",
        errno.EISDIR: "is a folder, expected a file",
        errno.ENXIO: "is a pipe, a socket or a device, expected a file",
        errno.ELOOP: "is a link that leads back to itself",
        errno.ENAMETOOLONG: "has a name that is too long for a file",
        errno.EACCES: "cannot be read without further permissions",
    }
    return reasons.get(error.errno or 0, f"cannot be read ({error.strerror or errors.one_line(error)})")


def read_text(
    path: str | pathlib.Path, *, name: str = "", fix: str = "correct the path", limit: int = limits.TEXT_BYTES
) -> str:
    """Return the text of a UTF-8 file, without a byte order mark; arguments and errors as for `read_bytes`.

    Raises:
      UserError: also, the file has another encoding.
    """
    path, name = pathlib.Path(path), name or str(path)
    content = read_bytes(path, name=name, fix=fix, limit=limit)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise errors.UserError(
            f"{name} is not a text file in UTF-8 (byte {error.start} is {content[error.start]:#04x}): {fix}"
        ) from error


def read_json(
    path: str | pathlib.Path,
    kind: type | None = dict,
    *,
    name: str = "",
    fix: str = "correct it",
    limit: int = limits.TEXT_BYTES,
) -> Any:
    """Return the value of a JSON file, of type `kind` unless that is None; arguments and errors as for `read_text`.

    Raises:
      UserError: also, the file is not JSON, or holds a value of another type.
    """
    path, name = pathlib.Path(path), name or str(path)
    text = read_text(path, name=name, fix=fix, limit=limit)
    try:
        value = parse_json(text)
    except ValueError as error:
        if placeholder := placeholders.find(path):
            raise errors.UserError(f"{name} {placeholder}") from error
        raise errors.UserError(f"{name} is not valid JSON ({error}): {fix}") from error
    if kind is not None and not isinstance(value, kind):
        raise errors.UserError(f"{name} holds {describe(value)}, expected {_article(_KINDS[kind])}: {fix}")
    return value


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
      ValueError: it is malformed or nested too deeply; the message is one line.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(errors.one_line(error)) from error


def describe(value: Any) -> str:
    """Return the type of a JSON value in words."""
    return "null" if value is None else _article(_KINDS.get(type(value), type(value).__name__))


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def read_start(path: pathlib.Path, size: int, *, what: str, fix: str, name: str = "") -> bytes:
    """Return the first bytes of a regular file that a library is about to open.

    Args:
      path: the file.
      size: number of bytes, at most.
      what: kind of file in errors, such as "a .pt file".
      fix: what to do about an error, the end of the sentence.
      name: the file in errors (default: its path).

    Raises:
      UserError: the file is absent, unreadable, a device or pipe, or the placeholder of a download.
    """
    name = name or str(path)
    try:
        with open_binary(path) as file:
            start = file.read(size)
    except OSError as error:
        raise errors.UserError(f"{name} {problem(error)}: {fix}") from error
    if not is_regular(path):
        raise errors.UserError(f"{name} is a device or pipe, expected {what}: {fix}")
    if placeholder := placeholders.find(path):
        raise errors.UserError(f"{name} {placeholder}")
    return start


def is_regular(path: pathlib.Path) -> bool:
    """Return whether a path is a regular file, and not a folder, a device, or a path that cannot exist."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False
