"""Format "jasmine": ArrayRecord files of raw frames with discrete actions, as Jasmine writes them.

A data set has the folders train, val and test with *.array_record, and metadata.json with the number of actions. A
record is a pickled object with these keys: `raw_video` (bytes of uint8 [T, H, W, C]), `sequence_length` (T), and
`actions` (an integer per frame, the action after it) where they are known. Nothing in the pickles is executed.

A command is one number per action, 1 for the one that is taken.

Source: https://github.com/p-doom/jasmine, `data/jasmine_data/`, which does not store H, W and C.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jworld.data import record_files, records, tables
from jworld.data.inputs import items, stored_images
from jworld.data.inputs.base import Format
from jworld.data.inputs.commands import Commands
from jworld.utils import array_pickles, limits
from jworld.utils.errors import UserError, one_line

SUFFIX, METADATA = ".array_record", "metadata.json"
#: (width, height) of the frames that Jasmine's scripts write, by the number of pixels: MinAtar, CoinRun, Atari, videos.
SIZES = {width * height: (width, height) for width, height in ((10, 10), (64, 64), (84, 84), (160, 90))}
#: Folder of a split -> split of the records.
SPLITS = {"train": "train", "val": "val"}
_MOST_ACTIONS = 4096


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Facts that all records share: the size of a frame if it is given, the frame rate, and the number of actions."""

    size: tuple[int, int] | None
    fps: float
    actions: int

    def pixels(self, place: str, facts: Mapping[str, Any]) -> np.ndarray:
        """Return the frames of a record, uint8 [T, H, W, 3].

        Raises:
          UserError: the bytes do not fit the number of frames, or the size of a frame is unknown.
        """
        video, length = facts["raw_video"], facts["sequence_length"]
        if not 2 <= length <= limits.VIDEO_FRAMES or len(video) % length:
            raise UserError(
                f"{place}: raw_video has {len(video):,} bytes and sequence_length is {length}, expected at least 2 "
                "frames of one size: write the file again"
            )
        values = len(video) // length
        size = self.size or SIZES.get(values // 3 if values % 3 == 0 else 0)
        if size is None:
            raise UserError(
                f"{place}: a frame has {values:,} numbers, of which width and height are unknown: give --frames-size, "
                "such as 160x90"
            )
        channels, rest = divmod(values, size[0] * size[1])
        if channels not in (1, 3) or rest:
            raise UserError(
                f"{place}: a frame has {values:,} numbers, expected {size[0]}x{size[1]} with 3 colors or 1: give "
                "another --frames-size"
            )
        frames = np.frombuffer(video, np.uint8).reshape(length, size[1], size[0], channels)
        return frames if channels == 3 else np.repeat(frames, 3, axis=-1)

    def commands(self, place: str, facts: Mapping[str, Any]) -> np.ndarray:
        """Return the action of every frame as commands [T, actions]; a `UserError` if they do not fit."""
        try:
            values = _actions(facts.get("actions"))
        except ValueError as error:
            raise UserError(f"{place}: 'actions': {one_line(error)}: write the file again") from error
        if values.shape != (facts["sequence_length"],):
            raise UserError(
                f"{place}: 'actions' has shape {list(values.shape)}, expected one for each of "
                f"{facts['sequence_length']} frames: write the file again"
            )
        wrong = values[(values < 0) | (values >= self.actions)]
        if len(wrong):
            raise UserError(
                f"{place}: an action is {wrong[0]}, expected 0 to {self.actions - 1} by num_actions in {METADATA}: "
                "correct it there"
            )
        one_hot: np.ndarray = np.eye(self.actions)[values]
        return one_hot


def list_items(path: pathlib.Path, options: items.ListOptions) -> items.Listing:
    """List the records of one file, or of all files in a folder; names are FILE/RECORD."""
    found = tables.files(path, SUFFIX)
    top = path if path.is_dir() else path.parent
    held_out = [file for file in found if file.relative_to(top).parts[0] == "test" and file.parent != top]
    notes = []
    if held_out and len(held_out) < len(found):
        notes.append(f"{top / 'test'} is ignored: a data set has the splits {' and '.join(records.SPLITS)}")
        found = [file for file in found if file not in held_out]
    place, facts = f"{found[0]}, record 0", _read(found[0], 0)
    layout = _Layout(options.frames_size, options.untimed_fps(path), _count_actions(top) if "actions" in facts else 0)
    # So that a wrong --frames-size ends before any work.
    shown = layout.pixels(place, facts)
    names = tuple(map(str, range(layout.actions)))
    listed = [
        items.Item(
            name=f"{items.name_of(file.relative_to(top))}/{number:06d}",
            video=file,
            split=SPLITS.get(file.relative_to(top).parts[0]),
            commands=names,
            open_video=functools.partial(_open, layout, file, number),
            read_tracks=functools.partial(_read_tracks, layout, file, number),
        )
        for file in found
        for number in range(record_files.count(file))
    ]
    if not any(item.split == "val" for item in listed):
        listed = [dataclasses.replace(item, split=None) for item in listed]
    listing = items.finish(listed, notes, source=path, options=options)
    known: dict[str, Any] = {"frames_fps": layout.fps, "frames_size": [shown.shape[2], shown.shape[1]]}
    if layout.actions:
        # Commands are 0 or 1 as they are.
        ends = (-1.0,) * layout.actions, (1.0,) * layout.actions
        known["commands"] = Commands("actions", tuple(range(layout.actions)), names, *ends).facts()
    return dataclasses.replace(listing, facts=known)


def _count_actions(top: pathlib.Path) -> int:
    """Return the number of actions by metadata.json in the folder of the data set or above."""
    path = next((place for place in (top / METADATA, top.parent / METADATA) if place.exists()), top / METADATA)
    facts = items.read_json(path)
    number = facts.get("num_actions") if isinstance(facts, dict) else None
    if type(number) is not int or not 1 <= number <= _MOST_ACTIONS:
        raise UserError(
            f"{path}: num_actions is {number!r:.60}, expected the number of actions that the records use, at most "
            f"{_MOST_ACTIONS}: add it"
        )
    return number


def _actions(value: Any) -> np.ndarray:
    """Return integers of a pickle, an array or a list; a ValueError if they are something else."""
    if isinstance(value, array_pickles.StoredArray):
        array = value.to_numpy()
        if array.dtype.kind not in "iu":
            raise ValueError(f"expected integers, got {array.dtype}")
        return array.astype(np.int64)
    if not isinstance(value, list) or not all(type(entry) is int and abs(entry) < 1 << 32 for entry in value):
        raise ValueError(f"expected an array of integers, got a {type(value).__name__}")
    return np.array(value, np.int64)


def _read(file: pathlib.Path, number: int) -> dict[str, Any]:
    """Return a record, whose video and length have the right types."""
    content = record_files.record(file, number)
    try:
        facts = array_pickles.load(content)
        if not isinstance(facts, dict):
            raise ValueError(f"it holds a {type(facts).__name__}")
        for key, kind in (("raw_video", bytes), ("sequence_length", int)):
            if type(facts.get(key)) is not kind:
                raise ValueError(f"{key!r} is of type {type(facts.get(key)).__name__}, expected {kind.__name__}")
    except ValueError as error:
        raise UserError(
            f"{file}, record {number}: {one_line(error)}: expected a pickled object with raw_video and "
            "sequence_length, as Jasmine writes it"
        ) from error
    return dict(facts)


def _open(layout: _Layout, file: pathlib.Path, number: int) -> stored_images.RawFrames:
    pixels = layout.pixels(f"{file}, record {number}", _read(file, number))
    return stored_images.RawFrames(file, pixels, fps=layout.fps)


def _read_tracks(layout: _Layout, file: pathlib.Path, number: int, frames: int) -> items.Tracks:
    if not layout.actions:
        return items.Tracks()
    return items.Tracks(commands=layout.commands(f"{file}, record {number}", _read(file, number)))


FORMAT = Format(
    name="jasmine",
    help="ArrayRecord files of raw frames and actions, as Jasmine writes them: train/*.array_record, "
    "val/*.array_record and metadata.json; see --frames-size",
    list_items=list_items,
    options=("frames_fps", "frames_size"),
    untimed=True,
)
