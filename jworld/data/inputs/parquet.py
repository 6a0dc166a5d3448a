"""Format "parquet": tables whose rows hold encoded videos, as those of data sets on the Hugging Face hub.

Source: the feature `Video` of `datasets`, an object {"bytes", "path"}; columns of plain bytes are read, too.
"""

import functools
import pathlib
import tempfile
from typing import Any

import pyarrow as pa

from jworld.data import tables
from jworld.data.inputs import items, video
from jworld.data.inputs.base import Format
from jworld.utils.errors import UserError

#: Columns of which the first with a text is the caption.
CAPTION_COLUMNS = ("caption", "text", "prompt")
#: Split of a data set on the hub, by which the names of its tables begin -> split of the records.
_SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "val"}


def list_items(path: pathlib.Path, options: items.ListOptions) -> items.Listing:
    """List the rows of one table, or of all tables in a folder; names are TABLE/ROW.

    Files named train-* and validation-* or test-* give the splits, if both kinds are there.

    Raises:
      UserError: a table cannot be read, or has no column of videos or several.
    """
    found = tables.files(path, ".parquet")
    splits = {table: _SPLITS.get(table.name.partition("-")[0].removesuffix(".parquet")) for table in found}
    has_splits = {"train", "val"} <= set(splits.values()) and None not in splits.values()
    listed = []
    for table in found:
        column = _video_column(table)
        caption = next((name for name in CAPTION_COLUMNS if name in tables.columns(table)), None)
        name = items.name_of(table.relative_to(path) if path.is_dir() else table.name)
        rows = tables.rows(table, [] if caption is None else [caption])
        for number, (group, row, values) in enumerate(rows):
            text = values.get(caption) if caption else ""
            place = table / f"row {number}"
            listed.append(
                items.Item(
                    name=f"{name}/{number:06d}",
                    video=place,
                    caption=text if isinstance(text, str) else "",
                    split=splits[table] if has_splits else None,
                    open_video=functools.partial(StoredVideo, place, str(table), group, column, row),
                )
            )
    return items.finish(listed, [], source=path, options=options)


def _video_column(table: pathlib.Path) -> str:
    """Return the only column of bytes, or of objects with bytes."""
    types = tables.types(table)
    found = [name for name, kind in types.items() if _holds_bytes(kind)]
    if len(found) != 1:
        raise UserError(
            f"{table} has the columns {', '.join(types)}, of which {len(found)} hold bytes, expected one of encoded "
            "videos: give another table or --format"
        )
    return found[0]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


class StoredVideo(video.VideoFile):
    """A video in a cell of a table, which lies in a temporary file while it is open."""

    def __init__(self, place: pathlib.Path, table: str, group: int, column: str, row: int) -> None:
        cell: Any = tables.cell(table, group, column, row)
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes) or not data:
            raise UserError(f"{place} holds no video, expected its bytes in {column!r}: write the table with them")
        # ffmpeg reads from a file, as it has to go back and forth.
        self._file = tempfile.NamedTemporaryFile(prefix="jworld-", suffix=".video")  # noqa: SIM115
        self._file.write(data)
        self._file.flush()
        super().__init__(place, stored=(pathlib.Path(self._file.name), 0, len(data)))


FORMAT = Format(
    name="parquet",
    help="parquet tables with one column of encoded videos (the feature Video of Hugging Face datasets, or bytes) and "
    "the caption in a column caption, text or prompt",
    list_items=list_items,
    # The same content as a folder of videos, so that the same recipes train on it.
    read_source=lambda path: "videos",
)
