"""Format "matrix": videos with a control token per frame, listed by The Matrix's index file.

The index is an object with `list`: objects with `path`, `caption` and, for the interactive stages, `control_signal_seq`
(tokens joined by commas or a list of them, one per frame of the video file) and `valid_frame_idx` (number of the first
frame to use). As in the original, a missing end of the tokens is the last one, further tokens are not used, and a clip
that begins too late for the video is moved back.

Source: The Matrix, `stage3/training/dataset.py`.
"""

import functools
import pathlib
from typing import Any

from jworld.cameras import driving
from jworld.cameras.actions import FRAMES_PER_LATENT
from jworld.data.inputs import items
from jworld.data.inputs.base import Format
from jworld.utils import notes
from jworld.utils.errors import UserError

_CONTROLS, _FIRST = "control_signal_seq", "valid_frame_idx"
_KEYS = ("path", "caption", _CONTROLS, _FIRST, "split")


def list_items(path: pathlib.Path, options: items.ListOptions) -> items.Listing:
    """List DIR with index.json, or the index itself; paths are relative to the index's folder or `options.root`."""
    index = items.index_file(path)
    value = items.read_json(index)
    entries = value.get("list") if isinstance(value, dict) else None
    if not isinstance(entries, list):
        raise UserError(f"{index} has no list under the key 'list', expected objects with path and caption there")
    root = options.root or index.parent
    listed = [_item(entry, number, index, root) for number, entry in enumerate(entries)]
    return items.finish(listed, items.unread_keys(entries, _KEYS, index), source=index, options=options)


def _item(entry: Any, number: int, index: pathlib.Path, root: pathlib.Path) -> items.Item:
    facts = items.entry_texts(entry, ("path", "caption", "split"))
    if not facts["path"]:
        return items.broken_entry(index, number, "path")
    where = f"{index}: entry {number} ({facts['path']})"
    problem = items.find_wrong_text(entry, ("caption", "split"), where)
    first, tokens = 0, list[str]()
    try:
        first, tokens = _first_frame(entry.get(_FIRST), where), _tokens(entry.get(_CONTROLS), where)
    except UserError as error:
        problem = problem or str(error)
    name = items.name_of(facts["path"])
    return items.Item(
        # A recording may be listed several times with different first frames.
        name=f"{name}+{first:06d}" if first else name,
        video=root / facts["path"],
        caption=facts["caption"],
        split=facts["split"] or None,
        controls=index if tokens else None,
        first_frame=first,
        moves_back=True,
        read_tracks=functools.partial(_read_tracks, where, tuple(tokens)) if tokens else items.no_tracks,
        problem=problem,
    )


def _first_frame(value: Any, where: str) -> int:
    """Return the frame number of `valid_frame_idx`, rounded as in the original."""
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 2**31:
        raise UserError(f"{where}: {_FIRST!r} is {value!r:.60}, expected a frame number from 0 on: correct it")
    return round(value)


def _tokens(value: Any, where: str) -> list[str]:
    """Return the tokens of `control_signal_seq`, [] without one."""
    parts = value.removesuffix(",").split(",") if isinstance(value, str) else value
    if parts is None or parts == [""]:
        return []
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise UserError(
            f"{where}: {_CONTROLS!r} is {value!r:.60}, expected tokens joined by commas or a list of them: correct it"
        )
    tokens = [part.strip() for part in parts]
    if unknown := [token for token in tokens if token not in driving.TOKENS]:
        raise UserError(
            f"{where}: {_CONTROLS!r} has the token {unknown[0]!r}, expected one of {', '.join(driving.TOKENS)}: "
            "correct it"
        )
    return tokens


def _read_tracks(where: str, tokens: tuple[str, ...], frames: int) -> items.Tracks:
    if 1 < len(tokens) <= -(-frames // FRAMES_PER_LATENT):
        _warn_once(
            f"{where}: {_CONTROLS!r} has {len(tokens)} tokens for {frames} frames, expected one per video frame; the "
            "last one is held to the end, as in the original"
        )
    return items.Tracks(controls=items.Controls(driving.filled(tokens, frames)))


@functools.cache
def _warn_once(text: str) -> None:
    notes.warn(text)


FORMAT = Format(
    name="matrix",
    help='index.json, {"list": [{path, caption, control_signal_seq, valid_frame_idx}]}, the last two optional',
    list_items=list_items,
    options=("root",),
    resampling="bicubic",
    usual_cut=(65, 16),
    control_tokens=driving.TOKENS,
)
