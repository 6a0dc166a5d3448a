"""Format "worldplay": videos with a pose json each, and an action json if there is one, listed by an index json.

Pose and action files are those of HY-WorldPlay's trainer: objects with one entry per video frame, in frame order
whatever the keys are named. Intrinsics are divided by twice the principal point, so they may belong to another image
size than the video's.

Source: `ar_camera_hunyuan_w_mem_dataset.py`; the index has `video_path` for its `latent_path`.
"""

import functools
import pathlib
from typing import Any

import numpy as np

from jworld.cameras import actions, poses
from jworld.data.inputs import items
from jworld.data.inputs.base import Format
from jworld.utils.errors import UserError

_KEYS = ("video_path", "pose_path", "action_path", "caption", "split")


def list_items(path: pathlib.Path, options: items.ListOptions) -> items.Listing:
    """List DIR with index.json, or the index itself; paths are relative to the index's folder or `options.root`.

    The index is a list of objects with video_path, pose_path, caption and optionally action_path and split.
    """
    index = items.index_file(path)
    entries = items.read_json(index)
    if not isinstance(entries, list):
        raise UserError(f"{index} holds a {type(entries).__name__}, expected a list of objects with video_path")
    root = options.root or index.parent
    listed = [_item(entry, number, index, root) for number, entry in enumerate(entries)]
    return items.finish(listed, items.unread_keys(entries, _KEYS, index), source=index, options=options)


def _item(entry: Any, number: int, index: pathlib.Path, root: pathlib.Path) -> items.Item:
    facts = items.entry_texts(entry, _KEYS)
    missing = [key for key in ("video_path", "pose_path") if not facts[key]]
    if missing:
        return items.broken_entry(index, number, missing[0])
    cameras = root / facts["pose_path"]
    controls = root / facts["action_path"] if facts["action_path"] else None
    return items.Item(
        name=items.name_of(facts["video_path"]),
        video=root / facts["video_path"],
        caption=facts["caption"],
        split=facts["split"] or None,
        cameras=cameras,
        controls=controls,
        problem=items.find_wrong_text(entry, _KEYS, f"{index}: entry {number}"),
        read_tracks=functools.partial(_read_tracks, cameras, controls),
    )


def _read_tracks(cameras: pathlib.Path, controls: pathlib.Path | None, frames: int) -> items.Tracks:
    w2c, pixels = _read_cameras(cameras, frames)
    if (pixels[:, :2, 2] <= 0).any():
        raise UserError(
            f"{cameras}: the principal point is {pixels[:, :2, 2].min():g} pixels, expected half the image size: "
            "write intrinsics in pixels"
        )
    intrinsics = poses.normalize_intrinsics(pixels)
    return items.Tracks(w2c=w2c, intrinsics=intrinsics, controls=_read_controls(controls, frames))


def _read_controls(path: pathlib.Path | None, frames: int) -> items.Controls | None:
    if path is None:
        return None
    entries = _frame_entries(path, frames, "actions")
    labels = [actions.label_from_entry(entry, f"{path}: entry {name!r}") for name, entry in entries.items()]
    return items.Controls(tuple(map(actions.label_name, labels)))


def _read_cameras(path: pathlib.Path, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """Return w2c [T, 4, 4] and intrinsics [T, 3, 3] in pixels."""
    entries = _frame_entries(path, frames, "poses")
    for name, entry in entries.items():
        absent = [key for key in ("w2c", "intrinsic") if not isinstance(entry, dict) or key not in entry]
        if absent:
            hint = ""
            if isinstance(entry, dict) and "extrinsic" in entry:
                hint = ": files for generation (extrinsic and K, camera-to-world, one entry per latent) do not fit here"
            raise UserError(f"{path}: entry {name!r} lacks the key {absent[0]!r}, expected w2c and intrinsic{hint}")
    matrices = [[entry[key] for entry in entries.values()] for key in ("w2c", "intrinsic")]
    return items.check_cameras(matrices[0], matrices[1], frames=frames, path=path)


def _frame_entries(path: pathlib.Path, frames: int, what: str) -> dict[str, Any]:
    value = items.read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a {type(value).__name__}, expected an object with one entry per frame")
    if len(value) != frames:
        raise items.count_error(path, what, len(value), frames)
    return value


FORMAT = Format(
    name="worldplay",
    help="index.json, a list of objects with video_path, pose_path (w2c and pixel intrinsic per frame), caption and "
    "optionally action_path",
    list_items=list_items,
    options=("root",),
    recorded_labels=True,
)
