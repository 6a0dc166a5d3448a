"""Format "bridge": videos of a robot arm with the state of its hand in every frame, as in the Bridge data set.

annotation/SPLIT/X.json, or annotations/X.json without splits, are objects with these keys: `state` (per frame x, y, z,
roll, pitch, yaw of the hand, and optionally more), `continuous_gripper_state` (a number per frame), `videos` (a list of
objects with `video_path`, one per camera; the first is used) and `texts` (captions; the first is used).

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

#: Folders of annotations: the data set's, with a folder per split, and that of the original's guide.
FOLDERS = ("annotation", "annotations")
#: Numbers of a pose of the hand: position and angles.
PLACE = 6


def list_items(path: pathlib.Path, options: items.ListOptions) -> items.Listing:
    """List DIR with annotations; video paths are relative to DIR or `options.root`."""
    found = {name: _files(path / name) for name in FOLDERS}
    used = [name for name, files in found.items() if any(files.values())]
    if not used:
        raise UserError(
            f"{path} holds no {FOLDERS[0]}/train/*.json, {FOLDERS[0]}/val/*.json or {FOLDERS[1]}/*.json, expected one "
            "per recording: give the folder above them"
        )
    if len(used) > 1:
        raise UserError(f"{path} holds recordings in {' and in '.join(used)}, expected one of them: move one away")
    folder, notes = path / used[0], []
    if any((folder / "test").glob("*.json")):
        notes.append(f"{folder / 'test'} is ignored: a data set has the splits {' and '.join(records.SPLITS)}")
    root = options.root or path
    listed = [_item(file, split, root) for split, files in found[used[0]].items() for file in files]
    return items.finish(listed, notes, source=folder, options=options)


def _files(folder: pathlib.Path) -> dict[str | None, list[pathlib.Path]]:
    """Return the annotations of a folder by split; those without a split have the key None."""
    places: dict[str | None, pathlib.Path] = {None: folder} | {split: folder / split for split in records.SPLITS}
    return {split: sorted(place.glob("*.json")) for split, place in places.items()}


def _item(file: pathlib.Path, split: str | None, root: pathlib.Path) -> items.Item:
    name = f"{split}/{file.stem}" if split else file.stem
    try:
        facts = items.read_json(file)
    except UserError as error:
        return items.Item(name=name, video=file, split=split, problem=str(error))
    videos = facts.get("videos") if isinstance(facts, dict) else None
    first = videos[0] if isinstance(videos, list) and videos else None
    video = items.entry_texts(first, ("video_path",))["video_path"]
    if not video:
        reason = f"{file}: the first entry of 'videos' has no text under 'video_path': correct the file"
        return items.Item(name=name, video=file, split=split, problem=reason)
    texts = facts.get("texts")
    caption = texts[0] if isinstance(texts, list) and texts else texts or ""
    wrong = not isinstance(caption, str)
    problem = f"{file}: 'texts' is {texts!r:.60}, expected a list of captions: correct the file" if wrong else None
    return items.Item(
        name=name,
        video=root / video,
        caption="" if wrong else caption,
        split=split,
        hand=file,
        read_tracks=functools.partial(_read_tracks, file),
        problem=problem,
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
    except (KeyError, TypeError, ValueError, OverflowError) as error:
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
    help="annotation/train/NAME.json or annotations/NAME.json with state and continuous_gripper_state of a robot arm "
    "per frame, videos, texts",
    list_items=list_items,
    options=("root",),
)
