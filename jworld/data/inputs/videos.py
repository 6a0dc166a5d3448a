"""Format "videos": video files or sub-folders of images, with captions as text files or in a table."""

import csv
import dataclasses
import io
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jworld.data.inputs import items, video
from jworld.data.inputs.base import Format
from jworld.utils import files
from jworld.utils.errors import UserError

TABLES = ("captions.json", "captions.jsonl", "captions.csv")


@dataclasses.dataclass(frozen=True)
class _Row:
    caption: str
    split: str | None = None


def list_items(path: pathlib.Path, options: items.ListOptions) -> items.Listing:
    """List DIR and its sub-folders; an item's name is its path below DIR without the suffix.

    A caption is the file `<name>.txt` next to the video (or to the folder of images). Otherwise it is a row of the one
    table captions.json ({"name": "caption"} or a list of objects), captions.jsonl or captions.csv in DIR, with the keys
    or columns `video` (with or without its suffix), `caption` and optionally `split`.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder, expected one with videos: correct the path")
    table = _read_table(path)
    listed, used = [], set()
    for place in sorted(path.rglob("*")):
        relative = place.relative_to(path)
        if any(part.startswith(".") for part in relative.parts) or not _is_video(place):
            continue
        name = relative.as_posix() if place.is_dir() else relative.with_suffix("").as_posix()
        found = [key for key in (relative.as_posix(), name) if key in table]
        row = table[found[0]] if found else _Row("")
        used.update(found)
        text = items.read_text(path / f"{name}.txt")
        listed.append(
            items.Item(
                name=name,
                video=place,
                caption=row.caption if text is None else text,
                split=row.split,
                frames_fps=options.frames_fps,
            )
        )
    notes = []
    if unused := sorted(table.keys() - used):
        notes.append(f"{len(unused)} captions of the table in {path} belong to no video, the first is {unused[0]!r}")
    return items.finish(listed, notes, source=path, options=options)


def _is_video(place: pathlib.Path) -> bool:
    if place.is_dir():
        return bool(video.image_files(place))
    return place.suffix.lower() in video.VIDEO_SUFFIXES


def _read_table(folder: pathlib.Path) -> dict[str, _Row]:
    tables = [folder / name for name in TABLES if os.path.lexists(folder / name)]
    if not tables:
        return {}
    if len(tables) > 1:
        raise UserError(f"{folder} has {' and '.join(file.name for file in tables)}, expected one of them: remove one")
    path = tables[0]
    rows: dict[str, _Row] = {}
    for number, row in enumerate(_read_rows(path)):
        facts = items.entry_texts(row, ("video", "caption", "split"))
        if not facts["video"] or not isinstance(row, Mapping) or "caption" not in row:
            raise UserError(f"{path}: row {number} is {row!r}, expected the keys video and caption: correct it")
        if wrong := items.find_wrong_text(row, ("video", "caption", "split"), f"{path}: row {number}"):
            raise UserError(wrong)
        if facts["video"] in rows:
            raise UserError(f"{path}: row {number} is the second one for {facts['video']!r}: remove one of them")
        rows[facts["video"]] = _Row(facts["caption"], facts["split"] or None)
    return rows


def _read_rows(path: pathlib.Path) -> list[Any]:
    if path.suffix == ".json":
        value = items.read_json(path)
        if isinstance(value, dict):
            return [{"video": name, "caption": caption} for name, caption in value.items()]
        if not isinstance(value, list):
            raise UserError(f"{path} holds a {type(value).__name__}, expected an object or a list: correct it")
        return value
    text = items.read_text(path) or ""
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text)))
    try:
        return [files.parse_json(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise UserError(f"{path} is not JSON in every line ({error}): correct it") from error


FORMAT = Format(
    name="videos",
    help="any folder of videos (mp4, webm, mkv, mov, m4v, avi, gif) or of sub-folders of images; captions in NAME.txt "
    "or in captions.json, .jsonl or .csv",
    list_items=list_items,
    options=("frames_fps",),
)
