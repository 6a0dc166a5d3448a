"""Samples of tar archives as webdataset writes them (https://github.com/webdataset/webdataset).

Successive files with the same name up to the first dot belong together: NAME.mp4 and NAME.txt, or NAME.jpg and
NAME.json. Archives are not compressed, so that images and videos are read from their place in them.
"""

import pathlib
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from jworld.utils import files, limits
from jworld.utils.errors import UserError, one_line

#: Suffixes of the files whose content a sample holds.
TEXTS = ("txt", "json")


class Member(NamedTuple):
    """A file of a sample: its name from the first dot on, its place in the archive, and the content of a text."""

    suffix: str
    info: tarfile.TarInfo
    text: bytes | None


def samples(path: pathlib.Path) -> Iterator[tuple[str, list[Member]]]:
    """Yield the name of every sample of an archive, and its files.

    Raises:
      UserError: the archive is compressed or damaged, or a text is larger than `limits.ROW_BYTES`.
    """
    name, members = "", list[Member]()
    try:
        files.refuse_devices(path)
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                folder, _, file = info.name.rpartition("/")
                key, _, suffix = file.partition(".")
                key = f"{folder}/{key}" if folder else key
                if key != name and name:
                    yield name, members
                    members = []
                name = key
                members.append(Member(suffix, info, _text(archive, info) if suffix in TEXTS else None))
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        reason = one_line(error)
        raise UserError(
            f"{path} is not a readable tar archive without compression ({reason}): download or unpack it again"
        ) from error
    if name:
        yield name, members


def _text(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    if info.size > limits.ROW_BYTES:
        raise tarfile.TarError(f"{info.name!r:.60} has more than {limits.ROW_BYTES:,} bytes")
    content = archive.extractfile(info)
    return content.read() if content else b""
