"""Files that stand where another file should be: Git LFS pointers, web pages and empty files."""

import pathlib

_LFS = b"version https://git-lfs.github.com/spec/"
_WEB_PAGE = (b"<!doctype html", b"<html")


def find(path: pathlib.Path) -> str | None:
    """Return what a file is in place of its content, as the end of a sentence after its name; None for other files."""
    try:
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
