"""Format "bridge": videos of a robot arm with the state of its hand in every frame, as in the Bridge data set.

annotation/SPLIT/X.json are objects with these keys: `state` (per frame x, y, z, roll, pitch, yaw of the hand, and
optionally more), `continuous_gripper_state` (a number per frame), `videos` (a list of objects with `video_path`, one
per camera; the first is used) and `texts` (a list of captions; the first is used).

Source: cosmos-predict2, `data/action_conditioned/action_conditioned_dataset.py`.
"""

import functools
import pathlib
from typing import Any

import numpy as np

from jworld.data import records
from jworld.data.inputs import items
from jworld.data.inputs.base import Format
from jworld.utils.errors import UserError

#: Numbers of a pose of the hand: position and angles.
PLACE = 6


def list_items(path: pathlib.Path, options: items.ListOptions) -> items.Listing:
    """List DIR with annotation/train/ and annotation/val/; video paths are relative to DIR or `options.root`."""
    folder = path / "annotation"
    files = {split: sorted((folder / split).glob("*.json")) for split in records.SPLITS}
    if not any(files.values()):
        raise UserError(
            f"{folder} holds no train/*.json or val/*.json, expected one per recording: give its parent folder"
        )
    notes = []
    if any((folder / "test").glob("*.json")):
        notes.append(f"{folder / 'test'} is ignored: a data set has the splits {' and '.join(records.SPLITS)}")
    root = options.root or path
    listed = [_item(file, split, root) for split in records.SPLITS for file in files[split]]
    return items.finish(listed, notes, source=folder, options=options)


def _item(file: pathlib.Path, split: str, root: pathlib.Path) -> items.Item:
    name = f"{split}/{file.stem}"
    try:
        facts = items.read_json(file)
    except UserError as error:
        return items.Item(name=name, video=file, split=split, problem=str(error))
    videos = facts.get("videos") if isinstance(facts, dict) else None
    first = videos[0] if isinstance(videos, list) and videos else None
    video = items.entry_texts(first, ("video_path",))["video_path"]
    if not video:
        problem = f"{file}: the first entry of 'videos' has no text under 'video_path': correct the file"
        return items.Item(name=name, video=file, split=split, problem=problem)
    texts = facts.get("texts")
    caption = texts[0] if isinstance(texts, list) and texts and isinstance(texts[0], str) else ""
    return items.Item(
        name=name,
        video=root / video,
        caption=caption,
        split=split,
        hand=file,
        read_tracks=functools.partial(_read_tracks, file),
    )


def _read_tracks(path: pathlib.Path, frames: int) -> items.Tracks:
    facts = items.read_json(path)
    states = _numbers(facts, "state", path)
    gripper = _numbers(facts, "continuous_gripper_state", path)
    for name, found in (("states", states), ("states of the gripper", gripper)):
        if len(found) != frames:
            raise items.count_error(path, name, len(found), frames)
    if states.ndim != 2 or states.shape[1] < PLACE or gripper.ndim != 1:
        raise UserError(
            f"{path}: state has shape {list(states.shape)} and continuous_gripper_state {list(gripper.shape)}, "
            f"expected rows of {PLACE} or more numbers, and one number per frame: correct the file"
        )
    return items.Tracks(hand=np.concatenate([states[:, :PLACE], gripper[:, None]], axis=1))


def _numbers(facts: Any, key: str, path: pathlib.Path) -> np.ndarray:
    try:
        array = np.asarray(facts[key], np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: '{key}' is missing or has entries that are not numbers ({error}): correct the file"
        ) from error
    if array.ndim == 0 or not np.isfinite(array).all():
        raise UserError(
            f"{path}: '{key}' is {array.tolist()!r:.60}, expected a list of finite numbers: correct the file"
        )
    return array


FORMAT = Format(
    name="bridge",
    help="annotation/train/NAME.json with state and continuous_gripper_state of a robot arm per frame, videos, texts",
    list_items=list_items,
)
