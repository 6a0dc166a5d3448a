"""Pickles of strangers, among them .pt files: bounded before anything is loaded.

A pickle is a program. `torch.load(weights_only=True)` and the project's own reader execute none of its calls, but a
file of a few bytes can still reserve gigabytes, or build tuples within tuples whose hash never ends. So its
instructions are followed first, without making any object: their number, the sizes that they declare, and the size of
each object with all that it contains.
"""

import io
import mmap as mmap_lib
import pathlib
import pickletools
import zipfile
from collections.abc import Sequence
from typing import Any, Protocol

from jworld.utils import errors, files, limits, placeholders

_PUT = ("PUT", "BINPUT", "LONG_BINPUT")
_GET = ("GET", "BINGET", "LONG_BINGET")
#: Pickles of a file of torch.save before PyTorch 1.6, which are followed by the tensors.
_OLD_PICKLES = 5
_ARCHIVE = b"PK\x03\x04"


class _Reader(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...

    def readline(self) -> bytes: ...


class _Bounded:
    """A stream that gives at most so many bytes, and refuses a longer read without reserving memory."""

    def __init__(self, stream: _Reader, limit: int) -> None:
        self._stream, self._left = stream, limit

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise ValueError(f"it declares {size:,} bytes, more than it has or may have")
        self._left -= size
        return self._stream.read(size)

    def readline(self) -> bytes:
        line = self._stream.readline()
        self._left -= len(line)
        return line


def check(stream: _Reader, size: int) -> None:
    """Follow the instructions of one pickle to its end.

    Args:
      stream: the pickle; its position is then after the pickle.
      size: number of its bytes, at most.

    Raises:
      ValueError: it is malformed, or exceeds a limit.
    """
    stack: list[int | None] = []
    memo: dict[int, int | None] = {}
    bounded: Any = _Bounded(stream, min(size, limits.PICKLE_BYTES))
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(bounded)):
            if count >= limits.PICKLE_OPCODES:
                raise ValueError(f"it has more than {limits.PICKLE_OPCODES:,} instructions")
            number = argument if isinstance(argument, int) else 0
            if opcode.name == "FRAME" and number > size:
                raise ValueError(f"it declares {number:,} bytes, more than it has")
            if opcode.name in _PUT and number > count:
                raise ValueError(f"it stores its object number {number:,} before there are so many")
            _follow(opcode, argument, stack, memo)
            if stack and (stack[-1] or 0) > limits.PICKLE_OPCODES:
                raise ValueError("its objects contain each other too many times")
    except (IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError("its instructions do not fit together") from error


def _follow(
    opcode: pickletools.OpcodeInfo, argument: Any, stack: list[int | None], memo: dict[int, int | None]
) -> None:
    """Apply an instruction to a stack of sizes, on which None is a mark."""
    if opcode.name in _PUT:
        memo[argument] = stack[-1]
    elif opcode.name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif opcode.name in _GET:
        stack.append(memo[int(argument)])
    elif opcode.name == "DUP":
        stack.append(stack[-1])
    elif opcode.name == "POP":
        stack.pop()
    else:
        needed, total = list(opcode.stack_before), 0
        if pickletools.markobject in needed:
            while (size := stack.pop()) is not None:
                total += size
            needed = needed[: needed.index(pickletools.markobject)]
        for _ in needed:
            total += stack.pop() or 0
        for made in opcode.stack_after:
            stack.append(None if made is pickletools.markobject else 1 + total)


def read_checked(path: pathlib.Path, *, fix: str) -> io.BytesIO:
    """Return the content of a file that is one pickle, after `check`.

    Raises:
      UserError: the file is absent, unreadable, too large, or no pickle that may be loaded.
    """
    content = files.read_bytes(path, fix=fix, limit=limits.PICKLE_BYTES)
    try:
        check(io.BytesIO(content), len(content))
    except ValueError as error:
        if placeholder := placeholders.find(path):
            raise errors.UserError(f"{path} {placeholder}") from error
        raise errors.UserError(
            f"{path} is not a pickle that may be loaded ({errors.one_line(error)}): {fix}"
        ) from error
    return io.BytesIO(content)


def load_torch(path: pathlib.Path, *, fix: str, mmap: bool = False, allowed: Sequence[Any] = ()) -> Any:
    """Load a file of torch.save on the CPU with `weights_only`, after a check of its pickles.

    Args:
      path: the file.
      fix: what to do about an error, the end of the sentence.
      mmap: map the tensors into memory where the file's format allows it.
      allowed: classes that the file may name in addition.

    Raises:
      UserError: PyTorch is not installed, or the file is absent, damaged, or of another format.
    """
    try:
        import torch
    except ImportError as error:
        raise errors.UserError(f'{path}: reading this needs PyTorch: pip install "jworld[torch]"') from error
    is_archive = check_torch(path, fix=fix)
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_archive)
    except Exception as error:  # torch's unpickler and zip reader raise many types for foreign files
        reason = errors.one_line(error)
        # Not the library's advice to load the file all the same.
        if "Weights only load failed" in reason:
            reason = "it names other objects than tensors, which could execute code"
        raise errors.UserError(f"{path} is not a readable .pt file of plain tensors ({reason}): {fix}") from error


def check_torch(path: pathlib.Path, *, fix: str) -> bool:
    """Check the pickles of a file of torch.save; return whether it is an archive, the present format.

    Raises:
      UserError: the file is absent, damaged, or of another format; `fix` ends the sentence.
    """
    start = files.read_start(path, len(_ARCHIVE), what="a .pt file", fix=fix)
    try:
        if start == _ARCHIVE:
            _check_archive(path)
        else:
            _check_old(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        reason = errors.one_line(error)
        raise errors.UserError(f"{path} is not a .pt file that may be loaded ({reason}): {fix}") from error
    return start == _ARCHIVE


def _check_archive(path: pathlib.Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError("two of its entries have one name")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise ValueError(f"its entry {entry.filename!r:.60} is compressed, which torch.save does not do")
        pickles = [entry for entry in entries if entry.filename.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1 or pickles[0].file_size > limits.PICKLE_BYTES:
            raise ValueError(f"expected one entry data.pkl of at most {limits.PICKLE_BYTES:,} bytes")
        content = archive.read(pickles[0])
        check(io.BytesIO(content), len(content))


def _check_old(path: pathlib.Path) -> None:
    """Check the pickles of a file of PyTorch before 1.6, in front of its tensors."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap_lib.mmap(file.fileno(), 0, access=mmap_lib.ACCESS_READ) as view:
        for _ in range(_OLD_PICKLES):
            check(view, size - view.tell())
