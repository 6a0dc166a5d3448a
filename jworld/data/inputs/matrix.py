"""Format "matrix": videos with a control token per frame, listed by The Matrix's index file.

The index is an object with `list`: objects with `path`, `caption` and, for the interactive stages, `control_signal_seq`
(tokens joined by commas, one per frame of the video file) and `valid_frame_idx` (number of the first frame to use).

Source: The Matrix, `stage3/training/dataset.py`.
"""

import functools
import pathlib
from typing import Any

from jworld.cameras import driving
from jworld.data.inputs import items
from jworld.data.inputs.base import Format
from jworld.utils.errors import UserError


def list_items(path: pathlib.Path, options: items.ListOptions) -> items.Listing:
    """List DIR with index.json, or the index itself; paths are relative to the index's folder or `options.root`."""
    index = items.index_file(path)
    value = items.read_json(index)
    entries = value.get("list") if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"{index} has no list under the key 'list', expected objects with path and caption there")
    root = options.root or index.parent
    listed = [_item(entry, number, index, root) for number, entry in enumerate(entries)]
    return items.finish(listed, [], source=index, options=options)


def _item(entry: Any, number: int, index: pathlib.Path, root: pathlib.Path) -> items.Item:
    facts = items.entry_texts(entry, ("path", "caption", "control_signal_seq", "split"))
    if not facts["path"]:
        return items.broken_entry(index, number, "path")
    first = entry.get("valid_frame_idx", 0)
    name, problem = items.name_of(facts["path"]), None
    if type(first) is not int or first < 0:
        problem = f"{index}: valid_frame_idx of {facts['path']} is {first!r}, expected a frame number: correct it"
        first = 0
    tokens = facts["control_signal_seq"]
    return items.Item(
        # A recording may be listed several times with different first frames.
        name=f"{name}+{first:06d}" if first else name,
        video=root / facts["path"],
        caption=facts["caption"],
        split=facts["split"] or None,
        controls=index if tokens else None,
        first_frame=first,
        read_tracks=functools.partial(_read_tracks, index, facts["path"], tokens) if tokens else items.no_tracks,
        problem=problem,
    )


def _read_tracks(index: pathlib.Path, path: str, sequence: str, frames: int) -> items.Tracks:
    tokens = [token.strip() for token in sequence.split(",")]
    if unknown := [token for token in tokens if token not in driving.TOKENS]:
        raise UserError(
            f"{index}: control_signal_seq of {path} has the token {unknown[0]!r}, expected one of "
            f"{', '.join(driving.TOKENS)}: correct it"
        )
    if len(tokens) > frames:
        raise items.count_error(index, f"control tokens for {path}", len(tokens), frames)
    # As in the original, the last control is held to the end of the video.
    tokens += tokens[-1:] * (frames - len(tokens))
    return items.Tracks(controls=items.Controls(tuple(tokens)))


FORMAT = Format(
    name="matrix",
    help='index.json, {"list": [{path, caption, control_signal_seq, valid_frame_idx}]}, the last two optional',
    list_items=list_items,
    control_tokens=driving.TOKENS,
)
