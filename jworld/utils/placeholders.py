"""Files that stand where another file should be: Git LFS pointers, web pages and empty files."""

import pathlib

from jworld.utils.errors import UserError

_LFS = b"version https://git-lfs"
_WEB_PAGE = (b"<!doctype html", b"<html")


def find(path: pathlib.Path) -> str | None:
    """Return what a file is in place of its content, as the end of a sentence after its name; None for other files."""
    try:
        # Reading a pipe would wait for its other end.
        start = b"-"
        if path.is_file():
            with path.open("rb") as file:
                start = file.read(256)
    except OSError:
        return None
    if start.startswith(_LFS):
        return "is a Git LFS pointer and not the file itself: run git lfs pull in its folder"
    if not start:
        return "is empty: download or copy it again"
    if start.lstrip().lower().startswith(_WEB_PAGE):
        return "is a web page and not the file itself: download it again"
    return None


def refuse(path: pathlib.Path) -> None:
    """Raise a `UserError` for a file that stands where another file should be."""
    if found := find(path):
        raise UserError(f"{path} {found}")


def refuse_in(folder: pathlib.Path, suffixes: tuple[str, ...]) -> None:
    """Raise a `UserError` for a file directly in `folder`, with one of these suffixes, that stands for another file."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in suffixes and path.is_file():
            refuse(path)
