"""The registry of input formats that `python -m jworld.precompute --format` reads."""

import dataclasses
import pathlib

from jworld.data.inputs import (
    bridge,
    cosmos,
    episodes,
    items,
    jasmine,
    lerobot,
    matrix,
    parquet,
    rlds,
    videos,
    webdataset,
    worldplay,
)
from jworld.data.inputs.base import Format
from jworld.utils.errors import UserError

#: Formats by name, in the order of --help.
FORMATS: dict[str, Format] = {
    entry.name: entry
    for entry in (
        episodes.FORMAT,
        videos.FORMAT,
        worldplay.FORMAT,
        cosmos.FORMAT,
        bridge.FORMAT,
        lerobot.FORMAT,
        rlds.FORMAT,
        jasmine.FORMAT,
        webdataset.FORMAT,
        parquet.FORMAT,
        matrix.FORMAT,
    )
}
#: Share of held-out videos in formats without splits.
VAL_SHARE = 0.05
#: The format of the data sets that this project records.
DEFAULT = episodes.FORMAT.name


def find(name: str) -> Format:
    """Return the format of this name; an unknown name is a `UserError`."""
    if name not in FORMATS:
        raise UserError(f"format is {name!r}, expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def list_items(
    format_name: str,
    path: str | pathlib.Path,
    *,
    options: items.ListOptions | None = None,
    val_share: float = VAL_SHARE,
) -> items.Listing:
    """List the items of the data set at `path`, sorted by name, each with a split; nothing is decoded.

    Args:
      format_name: a key of `FORMATS`.
      path: what the format reads: a folder or an index file.
      options: how to list.
      val_share: share of the items that become "val" if the format has no splits.

    Returns:
      All items, including those with a problem (`Item.problem`).

    Raises:
      UserError: the format is unknown, or the data set cannot be listed.
    """
    listing = find(format_name).list_items(pathlib.Path(path), options or items.ListOptions())
    listed = items.with_splits(listing.items, val_share)
    notes = [*listing.notes, *items.held_out_notes(listing.items, listed)]
    if val_share != VAL_SHARE and all(item.split for item in listing.items):
        notes.append(f"--val-share {val_share:g} has no effect: the data set itself names what is held out")
    return dataclasses.replace(listing, items=listed, notes=notes)


def describe_defaults(attribute: str) -> str:
    """Return the values of one attribute of `Format` by format, for --help: "stretch for episodes, else crop"."""
    values = {name: getattr(entry, attribute) for name, entry in FORMATS.items()}
    usual = max(values.values(), key=list(values.values()).count)
    return "".join(f"{value} for {name}, " for name, value in values.items() if value != usual) + f"else {usual}"
