"""Images with captions: webdataset shards and tables on disk or by URL, and lists of image URLs such as DataComp.

A source is a folder of .tar shards or of .parquet tables, one such file, JSON lines, a .txt file with a source per
line, or a URL of a file. A name may contain a range in braces, as in `00000..00123`. Shards and tables by URL are
stored in the folder of the set, one after the other as they are read, and images by URL when they are checked.
"""

import hashlib
import pathlib
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from jworld.data import archives, json_rows, tables
from jworld.data.conversations import image_files, remote
from jworld.utils import files, limits
from jworld.utils.errors import UserError

#: Subfolder of a set with the files that were downloaded for it.
DOWNLOADS = "downloads"
_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp")
_URL_COLUMNS = ("url", "URL", "image_url", "image_link")
_CAPTION_COLUMNS = ("caption", "text", "txt", "TEXT")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_KEY = "config.data.conversations.path"


class Pair(NamedTuple):
    """An image and its caption, each None if the row has none."""

    name: str
    caption: str | None
    place: image_files.ImageSource | None


def read(source: str, directory: pathlib.Path) -> Iterator[Pair]:
    """Yield all pairs of a source; `directory` receives files that are downloaded.

    Raises:
      UserError: a file is absent, cannot be downloaded, or has another content.
    """
    for name in expand(source):
        if remote.is_url(name):
            yield from _file(_downloaded(name, directory), directory)
            continue
        path = pathlib.Path(name)
        if not path.exists():
            raise UserError(f"{_KEY}: {path} is absent: correct it")
        for file in _files(path):
            yield from _file(file, directory)


def expand(name: str) -> list[str]:
    """Return the names that a name with ranges in braces stands for, with leading zeros kept."""
    found = _RANGE.search(name)
    if found is None:
        return [name]
    first, last = found[1], found[2]
    numbers = (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return [rest for number in numbers for rest in expand(name[: found.start()] + number + name[found.end() :])]


def _downloaded(url: str, directory: pathlib.Path) -> pathlib.Path:
    # Shards of different addresses may have the same name.
    name = f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{urllib.parse.urlparse(url).path.rpartition('/')[2]}"
    path = directory / DOWNLOADS / name
    try:
        remote.fetch(url, path, limit=limits.SHARD_BYTES)
    except OSError as error:
        raise UserError(f"{_KEY}: {error}: correct it, or try again later") from error
    return path


def _files(path: pathlib.Path) -> list[pathlib.Path]:
    if path.is_file():
        return [path]
    # A folder written by img2dataset has both: tables of URLs, and shards of images.
    suffix = ".parquet" if next(path.rglob("*.parquet"), None) and not next(path.rglob("*.tar"), None) else ".tar"
    return tables.files(path, suffix)


def _file(path: pathlib.Path, directory: pathlib.Path) -> Iterator[Pair]:
    suffix = path.suffix.lower()
    if suffix == ".txt":
        for line in files.read_text(path).splitlines():
            if line.strip():
                yield from read(line.strip(), directory)
    elif suffix == ".parquet":
        yield from _table(path, directory)
    elif suffix in (".json", ".jsonl"):
        yield from _json(path)
    else:
        yield from _shard(path, directory)


def _columns(names: list[str], path: pathlib.Path) -> tuple[str, str]:
    """Return the columns of image and caption."""
    image = next((name for name in (*_IMAGE_COLUMNS, *_URL_COLUMNS) if name in names), None)
    caption = next((name for name in _CAPTION_COLUMNS if name in names), None)
    if image is None or caption is None:
        raise UserError(
            f"{path} has the columns {', '.join(names)}, expected one of "
            f"{', '.join((*_IMAGE_COLUMNS, *_URL_COLUMNS))} and one of {', '.join(_CAPTION_COLUMNS)}: correct {_KEY}"
        )
    return image, caption


def _table(path: pathlib.Path, directory: pathlib.Path) -> Iterator[Pair]:
    image, caption = _columns(tables.columns(path), path)
    read_columns = [caption, image] if image in _URL_COLUMNS else [caption]
    for group, number, row in tables.rows(path, read_columns):
        name = f"{path.stem}/{group}/{number}"
        if image in _URL_COLUMNS:
            yield _by_url(name, row, image, caption)
        else:
            cell = {"parquet": _location(path, directory), "group": group, "row": number, "column": image}
            yield Pair(name, row[caption], cell)


def _json(path: pathlib.Path) -> Iterator[Pair]:
    for number, row in enumerate(json_rows.read(path)):
        image, caption = _columns(list(row), path)
        if image not in _URL_COLUMNS:
            raise UserError(f"{path}: row {number} has no URL, expected one of {', '.join(_URL_COLUMNS)}: correct it")
        yield _by_url(f"{path.stem}/{number}", row, image, caption)


def _by_url(name: str, row: Mapping[str, Any], image: str, caption: str) -> Pair:
    place = {"url": row[image]} if remote.is_url(row[image]) else None
    return Pair(name, row[caption], place)


def _location(path: pathlib.Path, directory: pathlib.Path) -> str:
    """Return a path as a location holds it: relative to the set if it was downloaded for it."""
    inside = path.is_relative_to(directory / DOWNLOADS)
    return str(path.relative_to(directory) if inside else path.absolute())


def _shard(path: pathlib.Path, directory: pathlib.Path) -> Iterator[Pair]:
    """Yield the pairs of a tar archive."""
    for name, members in archives.samples(path):
        place, caption = None, None
        for member in members:
            if f".{member.suffix.lower()}" in image_files.SUFFIXES:
                where = _location(path, directory)
                place = {"tar": where, "offset": member.info.offset_data, "size": member.info.size}
            elif member.text is not None:
                caption = _caption(member.suffix, member.text, caption)
        yield Pair(f"{path.stem}/{name}", caption, place)


def _caption(suffix: str, data: bytes, previous: str | None) -> str | None:
    """Return the text of NAME.txt, else the one in NAME.json."""
    try:
        if suffix == "txt":
            return data.decode()
        facts = files.parse_json(data)
        return previous or next((facts[key] for key in _CAPTION_COLUMNS if isinstance(facts.get(key), str)), None)
    except (ValueError, AttributeError):
        return previous
