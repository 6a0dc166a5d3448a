"""The formats that `python -m jworld.precompute --format` knows."""

import dataclasses
import pathlib
from collections.abc import Callable

from jworld.data.inputs import bridge, cosmos, episodes, items, matrix, videos, worldplay
from jworld.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Format:
    """A reader and, for --help, what it expects."""

    help: str
    list_items: Callable[[pathlib.Path, items.ListOptions], items.Listing]


FORMATS = {
    "episodes": Format("a folder of scripts/record_episodes.py", episodes.list_items),
    "videos": Format(
        "any folder of mp4, webm, mkv or mov files or of sub-folders of pictures; captions in NAME.txt or "
        "captions.json, .jsonl or .csv",
        videos.list_items,
    ),
    "worldplay": Format(
        "index.json, a list of objects with video_path, pose_path (w2c and pixel intrinsic per frame), caption and "
        "perhaps action_path",
        worldplay.list_items,
    ),
    "cosmos": Format("videos/NAME.mp4 and metas/NAME.txt", cosmos.list_items),
    "bridge": Format(
        "annotation/train/NAME.json with state and continuous_gripper_state per frame of a robot arm, videos and texts",
        bridge.list_items,
    ),
    "matrix": Format(
        'index.json, {"list": [{path, caption, control_signal_seq, valid_frame_idx}]}, the last two optional',
        matrix.list_items,
    ),
}


def list_items(
    format_name: str, path: str | pathlib.Path, *, options: items.ListOptions | None = None, val_share: float = 0.05
) -> items.Listing:
    """What the data set at `path` holds, sorted by name, every item with a split; nothing is decoded.

    Items with something wrong are listed, too: `Item.problem`. A data set that cannot be listed at all is a
    `UserError`. `val_share` of the items become "val" where the format has no splits.
    """
    if format_name not in FORMATS:
        raise UserError(f"format is {format_name!r}, expected one of {', '.join(FORMATS)}")
    listing = FORMATS[format_name].list_items(pathlib.Path(path), options or items.ListOptions())
    return dataclasses.replace(listing, items=items.with_splits(listing.items, val_share))
