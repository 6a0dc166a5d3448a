"""Format "webdataset": tar archives of videos with their captions, see `data.archives`.

Videos are decoded from their place in the archive, so nothing is unpacked.
"""

import functools
import pathlib
from collections.abc import Sequence

from jworld.data import archives, tables
from jworld.data.inputs import items, video
from jworld.data.inputs.base import Format
from jworld.utils import files
from jworld.utils.errors import UserError, one_line

#: Keys of a NAME.json, of which the first that has a text is the caption.
CAPTION_KEYS = ("caption", "text", "prompt", "txt")


def list_items(path: pathlib.Path, options: items.ListOptions) -> items.Listing:
    """List the videos of one archive, or of all archives in a folder; names are ARCHIVE/NAME.

    Raises:
      UserError: there is no archive, or one is damaged.
    """
    listed: list[items.Item] = []
    lonely = 0
    for shard in tables.files(path, ".tar"):
        name = items.name_of(shard.relative_to(path) if path.is_dir() else shard.name)
        for key, members in archives.samples(shard):
            present = [member for member in members if member.info.isfile()]
            videos = [m.info for m in present if f".{m.suffix.rpartition('.')[2].lower()}" in video.VIDEO_SUFFIXES]
            if not videos:
                lonely += bool(present)
                continue
            clip = videos[-1]
            place = shard / clip.name
            opened = functools.partial(video.VideoFile, place, stored=(shard, clip.offset_data, clip.size))
            caption = _caption(shard, present)
            listed.append(items.Item(name=f"{name}/{key}", video=place, caption=caption, open_video=opened))
    notes = [f"{lonely} samples of {path} have no video and are not read"] if lonely else []
    return items.finish(listed, notes, source=path, options=options)


def _caption(shard: pathlib.Path, members: Sequence[archives.Member]) -> str:
    """Return the text of NAME.txt, else the one in NAME.json, else ""."""
    found = ""
    for member in members:
        if member.text is None:
            continue
        try:
            if member.suffix == "txt":
                found = member.text.decode()
            else:
                texts = items.entry_texts(files.parse_json(member.text), CAPTION_KEYS)
                found = found or next((text for text in texts.values() if text), "")
        except ValueError as error:
            raise UserError(
                f"{shard}: {member.info.name!r:.60} is not readable ({one_line(error)}): correct it"
            ) from error
    return found


FORMAT = Format(
    name="webdataset",
    help="tar archives of NAME.mp4 (or another suffix of videos) with the caption in NAME.txt, or in NAME.json under "
    "caption, text, prompt or txt",
    list_items=list_items,
    # The same content as a folder of videos, so that the same recipes train on it.
    read_source=lambda path: "videos",
)
