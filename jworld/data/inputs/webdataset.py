"""Format "webdataset": tar archives of videos with their captions (https://github.com/webdataset/webdataset).

Successive files of an archive with the same name up to the first dot belong together: NAME.mp4 and NAME.txt or
NAME.json. Videos are decoded from their place in the archive, so nothing is unpacked.
"""

import functools
import pathlib
import tarfile
from collections.abc import Generator
from typing import IO

from jworld.data.inputs import items, video
from jworld.data.inputs.base import Format
from jworld.utils import files, limits
from jworld.utils.errors import UserError, one_line

#: Keys of a NAME.json, of which the first that has a text is the caption.
CAPTION_KEYS = ("caption", "text", "prompt", "txt")


def list_items(path: pathlib.Path, options: items.ListOptions) -> items.Listing:
    """List the videos of one archive, or of all archives in a folder; names are ARCHIVE/NAME.

    Raises:
      UserError: there is no archive, or one cannot be read to its end.
    """
    shards = sorted(path.rglob("*.tar")) if path.is_dir() else [path]
    if not shards:
        raise UserError(f"{path} holds no tar archives, expected NAME.tar: give another folder or --format")
    listed: list[items.Item] = []
    lonely = 0
    for shard in shards:
        name = shard.relative_to(path).with_suffix("").as_posix() if path.is_dir() else shard.stem
        for key, clip, caption in _samples(shard):
            if clip is None:
                lonely += 1
                continue
            place = shard / clip.name
            opened = functools.partial(video.VideoFile, place, stored=(shard, clip.offset_data, clip.size))
            listed.append(items.Item(name=f"{name}/{key}", video=place, caption=caption, open_video=opened))
    notes = [f"{lonely} samples of {path} have no video and are not read"] if lonely else []
    return items.finish(listed, notes, source=path, options=options)


def _samples(shard: pathlib.Path) -> Generator[tuple[str, tarfile.TarInfo | None, str], None, None]:
    """Yield the name of every sample of an archive, its video if it has one, and its caption."""
    try:
        files.refuse_devices(shard)
        # Not compressed: videos are read by their offsets.
        with tarfile.open(shard, "r:") as archive:
            key, clip, caption = "", None, ""
            for member in archive:
                if not member.isfile():
                    continue
                folder, _, file = member.name.rpartition("/")
                stem, _, suffix = file.partition(".")
                found = f"{folder}/{stem}" if folder else stem
                if found != key and key:
                    yield key, clip, caption
                    clip, caption = None, ""
                key = found
                if f".{suffix.rpartition('.')[2].lower()}" in video.VIDEO_SUFFIXES:
                    clip = member
                elif suffix in ("txt", "json"):
                    caption = _caption(shard, member, archive.extractfile(member), caption)
            if key:
                yield key, clip, caption
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        raise UserError(
            f"{shard} is not a readable tar archive without compression ({one_line(error)}): download it again, or "
            "unpack it"
        ) from error


def _caption(shard: pathlib.Path, member: tarfile.TarInfo, content: IO[bytes] | None, previous: str) -> str:
    """Return the text of NAME.txt, else the one in NAME.json, else the one that is known."""
    if member.size > limits.ROW_BYTES:
        raise UserError(
            f"{shard}: {member.name!r:.60} has {member.size:,} bytes, expected a text of at most "
            f"{limits.ROW_BYTES:,}: remove it"
        )
    data = b"" if content is None else content.read()
    try:
        if member.name.endswith(".txt"):
            return data.decode()
        facts = files.parse_json(data)
    except ValueError as error:
        raise UserError(f"{shard}: {member.name!r:.60} is not readable ({one_line(error)}): correct it") from error
    texts = items.entry_texts(facts, CAPTION_KEYS)
    return previous or next((text for text in texts.values() if text), "")


FORMAT = Format(
    name="webdataset",
    help="tar archives of NAME.mp4 (or another suffix of videos) with the caption in NAME.txt, or in NAME.json under "
    "caption, text, prompt or txt",
    list_items=list_items,
    # The same content as a folder of videos, so that the same recipes train on it.
    read_source=lambda path: "videos",
)
