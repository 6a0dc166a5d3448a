"""Lengths of paths and scripts: generation goes by whole chunks or windows, and a user's path may end within one."""

from typing import Literal, get_args

from jworld.utils import notes
from jworld.utils.errors import UserError

#: Value of --length: "pad" fills the last chunk, "cut" leaves out what fills no chunk.
Length = Literal["pad", "cut"]
LENGTHS: tuple[str, ...] = get_args(Length)
#: Most latents, tokens or windows of a video: about an hour and more. It is checked before a text is expanded.
MOST = 25_000


def check_windows(windows: int | None) -> int:
    """Return the number of windows of a model without a path, 1 for None; a `UserError` for more than `MOST`."""
    if windows is not None and windows > MOST:
        raise UserError(f"--windows is {windows:,}, expected at most {MOST:,}: generate several videos")
    return windows or 1


def whole(count: int, size: int, length: str | None, *, where: str, unit: str, chunk: str) -> int:
    """Return the number of steps to use of `count`: a positive multiple of `size`. A change is noted to the user.

    Args:
      count: steps of the path.
      size: steps of a chunk.
      length: one of LENGTHS, or None to refuse steps that do not fill whole chunks.
      where: flag and value of the path, for errors.
      unit: name of the steps, in the plural.
      chunk: name of a chunk.

    Raises:
      UserError: the steps do not fill whole chunks, or "cut" leaves none.
    """
    if length not in (None, *LENGTHS):
        raise UserError(f"--length is {length!r}, expected one of {', '.join(LENGTHS)}")
    missing = -count % size if count else size
    if not missing:
        return count
    if length == "pad":
        notes.note(f"{where} has {count} {unit}: {missing} are added to fill a {chunk} of {size}")
        return count + missing
    if length == "cut" and count > size:
        notes.note(f"{where} has {count} {unit}: the last {count % size} fill no {chunk} of {size} and are left out")
        return count // size * size
    raise UserError(
        f"{where} has {count} {unit}, expected a multiple of {size}, a {chunk}: add {missing}, or give --length pad"
        + ("" if count < size else " or --length cut")
    )
