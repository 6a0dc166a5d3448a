"""Format "episodes": the output of `scripts/record_episodes.py` (see `jworld.data.recording.episodes`)."""

import dataclasses
import functools
import pathlib
from typing import Any

from jworld.cameras import poses
from jworld.data.inputs import items, views
from jworld.data.inputs.base import Format
from jworld.data.recording import episodes
from jworld.utils.errors import UserError


def list_items(path: pathlib.Path, options: items.ListOptions) -> items.Listing:
    """List DIR with manifest.json, which holds names, splits and captions, and a folder per episode."""
    manifest = episodes.read_manifest(path)
    names = [name for name, _ in manifest.get("views", ())]
    cameras = views.parse(",".join(names))
    listed = []
    for entry in manifest["episodes"]:
        facts = path / entry["name"] / "episode.json"
        item = items.Item(
            name=entry["name"],
            video=path / entry["name"] / episodes.video_file(),
            caption=entry["caption"],
            split=entry["split"],
            cameras=facts,
            controls=facts,
            read_tracks=functools.partial(_read_tracks, facts, entry["frames"]),
        )
        if cameras is not None:
            others = [path / entry["name"] / episodes.video_file(name) for name in names[1:]]
            item = views.together(cameras, [item, *(dataclasses.replace(item, video=other) for other in others)])
        listed.append(item)
    listing = items.finish(listed, [], source=path / episodes.MANIFEST, options=options)
    return listing if cameras is None else dataclasses.replace(listing, facts=cameras.facts())


def _read_tracks(path: pathlib.Path, promised: int, frames: int) -> items.Tracks:
    facts: Any = items.read_json(path)
    for key in ("frames", "actions", "w2c", "intrinsics"):
        if not isinstance(facts, dict) or key not in facts:
            raise UserError(f"{path} lacks the key {key!r}: record the data set again")
    if not frames == promised == facts["frames"]:
        raise UserError(
            f"{path.with_name('video.mp4')} holds {frames} frames, expected {promised} by the manifest and "
            f"{facts['frames']} by episode.json: record the data set again"
        )
    try:
        intrinsics = poses.intrinsics_matrices(facts["intrinsics"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: intrinsics are not rows of fx, fy, cx, cy: record the data set again") from error
    w2c, intrinsics = items.check_cameras(facts["w2c"], intrinsics, frames=frames, path=path)
    controls = items.check_directions(facts["actions"], frames=frames, path=path)
    return items.Tracks(w2c=w2c, intrinsics=intrinsics, controls=controls)


def _read_fps(path: pathlib.Path) -> float:
    return float(episodes.read_manifest(path)["fps"])


def _read_source(path: pathlib.Path) -> str:
    return str(episodes.read_manifest(path)["source"])


FORMAT = Format(
    name="episodes",
    help="a folder of scripts/record_episodes.py",
    list_items=list_items,
    read_fps=_read_fps,
    read_source=_read_source,
    # Episodes are recorded in the aspect ratio of the model's images.
    fit="stretch",
    resampling="area",
)
