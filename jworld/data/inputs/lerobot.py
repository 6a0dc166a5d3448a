"""Format "lerobot": LeRobot data sets of the versions 2.0, 2.1 and 3.0, as a folder or an id of the hub.

meta/info.json has the frame rate, the features of a frame and the places of the files. Tables have a row per frame with
its numbers, and a camera has videos (or images in the tables). A file holds one episode in version 2 and several in
version 3. The tasks of an episode are its caption.

Commands are numbers of every frame, by default the feature `action`. They are scaled from the smallest and largest
value in the data set to [-1, 1]. The quantiles of a data set are means over its episodes, so they can lie so close
together that no range is left between them.

Source: lerobot 0.4, `datasets/utils.py` and `datasets/lerobot_dataset.py`.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import numpy as np

from jworld.data import json_rows, records, tables
from jworld.data.inputs import items, stored_images, video, views
from jworld.data.inputs.base import Format
from jworld.data.inputs.commands import Commands, check, pick
from jworld.utils import hub_folders
from jworld.utils.errors import UserError, one_line

INFO, STATS = "meta/info.json", "meta/stats.json"
EPISODES, EPISODE_LINES = "meta/episodes", "meta/episodes.jsonl"
EPISODE_STATS = "meta/episodes_stats.jsonl"
#: Feature whose numbers are the commands by default.
ACTION = "action"
_VERSIONS = ("2.0", "2.1", "3.0")
_PLACE = re.compile(r"\{(\w+)(?::0?(\d+)d)?\}")


@dataclasses.dataclass(frozen=True)
class _Info:
    """The facts of meta/info.json in `folder` that are read; `major` is the version of the layout."""

    folder: pathlib.Path
    major: int
    fps: float
    features: Mapping[str, Mapping[str, Any]]
    places: Mapping[str, str]
    chunk: int
    splits: Mapping[str, str]

    def is_video(self, camera: str) -> bool:
        """Return whether a camera has videos; otherwise its images are in the tables."""
        return bool(self.features[camera]["dtype"] == "video")

    def place(self, kind: str, **values: int | str) -> pathlib.Path:
        """Return the path of a file from its pattern in info.json, which must not leave the folder."""
        pattern = self.places[kind]

        def put(match: re.Match[str]) -> str:
            if match[1] not in values:
                raise UserError(f"{self.folder / INFO}: {kind} is {pattern!r}, where {match[1]!r} is unknown")
            value = values[match[1]]
            return f"{value:0{match[2]}d}" if match[2] and isinstance(value, int) else str(value)

        path = pathlib.PurePosixPath(_PLACE.sub(put, pattern))
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{self.folder / INFO}: {kind} is {pattern!r}, expected a path below the data set")
        return self.folder / path


@dataclasses.dataclass(frozen=True)
class _Episode:
    """Rows of one episode: its number, the number of frames, the caption, its table and its part of the video."""

    number: int
    frames: int
    tasks: Sequence[str]
    table: pathlib.Path
    video: pathlib.Path
    section: tuple[float, float] | None


def list_items(path: pathlib.Path, options: items.ListOptions) -> items.Listing:
    """List the episodes of a folder, or of a data set of the hub, which is downloaded."""
    folder = find(path)
    info = _read_info(folder)
    several = views.parse(options.camera)
    cameras = [_camera(info, name) for name in (several.names if several else (options.camera,))]
    # Models of several cameras have no commands.
    commands = None if several else _commands(info, options.commands)
    if folder != path:
        # Other cameras' videos stay where they are.
        videos = (f"videos/*{camera}/*" for camera in cameras)
        folder = hub_folders.find_data(str(path), ("meta/*", "data/*", *videos))
        info = dataclasses.replace(info, folder=folder)
    read_episodes = _episodes if info.major == 3 else _old_episodes
    episodes = [list(read_episodes(info, camera)) for camera in cameras]
    splits, notes = _splits(info)
    by_camera = [
        [_item(info, episode, camera, commands, splits.get(episode.number)) for episode in own]
        for camera, own in zip(cameras, episodes, strict=True)
    ]
    listed = by_camera[0]
    facts: dict[str, Any] = {"camera": cameras[0]}
    if several is not None:
        listed = [views.together(several, parts) for parts in zip(*by_camera, strict=True)]
        facts = several.facts()
    if count := sum(len(set(episode.tasks)) > 1 for episode in episodes[0]):
        notes.append(f"{count} episodes have several tasks, of which the first is the caption")
    if commands is not None:
        facts["commands"] = commands.facts()
    listing = items.finish(listed, notes, source=folder / INFO, options=options)
    return dataclasses.replace(listing, facts=facts)


def find(path: pathlib.Path) -> pathlib.Path:
    """Return the folder of a data set; of one on the hub only `meta` is downloaded."""
    return path if path.exists() else hub_folders.find_data(str(path), ("meta/*",))


def _read_info(folder: pathlib.Path) -> _Info:
    path = folder / INFO
    facts = items.read_json(path)
    if not isinstance(facts, dict):
        raise UserError(f"{path} holds a {type(facts).__name__}, expected an object: download the data set again")
    version = str(facts.get("codebase_version", "")).removeprefix("v")
    if version not in _VERSIONS:
        raise UserError(
            f"{path}: codebase_version is {facts.get('codebase_version')!r}, expected one of {', '.join(_VERSIONS)}: "
            "convert the data set with lerobot"
        )
    fps, features = facts.get("fps"), facts.get("features")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1e6:
        raise UserError(f"{path}: fps is {fps!r:.60}, expected a positive number: correct the file")
    if not isinstance(features, dict) or not all(isinstance(entry, dict) for entry in features.values()):
        raise UserError(f"{path}: features are {features!r:.60}, expected an object of objects: correct the file")
    places = {key: facts.get(key) or "" for key in ("data_path", "video_path")}
    chunk, splits = facts.get("chunks_size") or 1000, facts.get("splits") or {}
    if not all(isinstance(place, str) for place in places.values()) or not places["data_path"]:
        raise UserError(f"{path}: data_path and video_path are {places!r:.80}, expected texts: correct the file")
    if type(chunk) is not int or chunk < 1 or not isinstance(splits, dict):
        raise UserError(f"{path}: chunks_size is {chunk!r:.20} and splits {splits!r:.60}: correct the file")
    return _Info(folder, int(version[0]), float(fps), features, places, chunk, splits)


def _camera(info: _Info, wanted: str) -> str:
    """Return the key of the camera: the wanted one, also without "observation.images.", or the only one."""
    cameras = [key for key, entry in info.features.items() if entry.get("dtype") in ("video", "image")]
    if not cameras:
        raise UserError(f"{info.folder / INFO} lists no camera among its features: give a data set with videos")
    found = [key for key in cameras if wanted in (key, key.rsplit(".", 1)[-1])] if wanted else cameras
    if len(found) != 1:
        named = f"--camera is {wanted!r}" if wanted else f"the data set has {len(cameras)} cameras"
        raise UserError(f"{info.folder}: {named}, give one of {', '.join(cameras)} as --camera")
    return found[0]


def _commands(info: _Info, wanted: str) -> Commands | None:
    """Return the commands that `--commands KEY:NAME,...` selects; None if the data set has no actions."""
    key, _, chosen = wanted.partition(":")
    if not key and ACTION not in info.features:
        return None
    key = key or ACTION
    feature = info.features.get(key, {})
    shape = feature.get("shape")
    if not isinstance(shape, list) or len(shape) != 1 or type(shape[0]) is not int or not 1 <= shape[0] <= 4096:
        fitting = [name for name, entry in info.features.items() if len(entry.get("shape") or ()) == 1]
        raise UserError(f"{info.folder}: --commands is {key!r}, expected one of {', '.join(fitting)}")
    names = _names(feature.get("names"), shape[0])
    columns = pick(key, names, chosen, where=info.folder)
    low, high = _range(info, key, shape[0])
    picked = tuple(names[column] for column in columns)
    return Commands(key, columns, picked, tuple(low[list(columns)].tolist()), tuple(high[list(columns)].tolist()))


def _names(value: Any, count: int) -> tuple[str, ...]:
    """Return one name per number: a list, or the lists of an object such as {"motors": [...]}; else numbers."""
    if isinstance(value, dict):
        lists = [part if isinstance(part, list) else [name] for name, part in value.items()]
        value = [name for part in lists for name in part]
    if isinstance(value, list) and len(value) == count == len(set(map(str, value))):
        return tuple(map(str, value))
    return tuple(map(str, range(count)))


def _range(info: _Info, key: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest and the largest value of every number of a feature in the data set."""
    path = info.folder / STATS
    if path.exists():
        stats = [(path, items.read_json(path))]
    else:
        path = info.folder / EPISODE_STATS
        stats = [(path, entry.get("stats")) for entry in json_rows.read(path)]
    ends: list[np.ndarray] = []
    for name, choose in (("min", np.min), ("max", np.max)):
        try:
            values = np.array([np.asarray(entry[key][name], np.float64).reshape(count) for _, entry in stats])
            ends.append(choose(values, axis=0))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{path}: '{name}' of {key!r} is missing or has not {count} numbers ({one_line(error)}): compute the "
                "statistics again with lerobot"
            ) from error
    if not np.isfinite(ends).all():
        raise UserError(f"{path}: the range of {key!r} is not finite: compute the statistics again with lerobot")
    return ends[0], ends[1]


def _episodes(info: _Info, camera: str) -> Generator[_Episode, None, None]:
    """Yield the episodes of version 3, whose rows say in which part of which file each lies."""
    is_video = info.is_video(camera)
    numbers = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    part = [f"videos/{camera}/{name}" for name in ("chunk_index", "file_index")]
    times = [f"videos/{camera}/{name}" for name in ("from_timestamp", "to_timestamp")]
    columns = [*numbers, *(part + times if is_video else [])]
    for path in tables.files(info.folder / EPISODES, ".parquet"):
        if lacking := [name for name in (*columns, "tasks") if name not in tables.columns(path)]:
            raise UserError(f"{path} has no column {lacking[0]!r}: convert the data set again with lerobot")
        for _, number, row in tables.rows(path, [*columns, "tasks"]):
            if not all(type(row[name]) is int and row[name] >= 0 for name in numbers + (part if is_video else [])):
                raise UserError(f"{path}: row {number} has numbers that are missing or negative: download it again")
            table = info.place("data_path", chunk_index=row[numbers[2]], file_index=row[numbers[3]])
            section: tuple[float, float] | None = None
            source = table
            if is_video:
                source = info.place("video_path", video_key=camera, chunk_index=row[part[0]], file_index=row[part[1]])
                # A frame is shown from its time on; half a frame earlier nothing else begins.
                begin, end = (float(row[name]) - 0.5 / info.fps for name in times)
                section = begin, end
            yield _Episode(row[numbers[0]], row["length"], _tasks(row), table, source, section)


def _old_episodes(info: _Info, camera: str) -> Generator[_Episode, None, None]:
    """Yield the episodes of version 2, which have files of their own."""
    is_video = info.is_video(camera)
    path = info.folder / EPISODE_LINES
    for row in json_rows.read(path):
        number, frames = row.get("episode_index"), row.get("length")
        if type(number) is not int or type(frames) is not int or min(number, frames) < 0:
            raise UserError(f"{path}: {row!r:.80} has no episode_index or length: download the file again")
        values = {"episode_chunk": number // info.chunk, "episode_index": number}
        table = info.place("data_path", **values)
        source = info.place("video_path", video_key=camera, **values) if is_video else table
        yield _Episode(number, frames, _tasks(row), table, source, None)


def _tasks(row: Mapping[str, Any]) -> list[str]:
    tasks = row.get("tasks")
    return [task for task in tasks if isinstance(task, str)] if isinstance(tasks, list) else []


def _splits(info: _Info) -> tuple[dict[int, str], list[str]]:
    """Return the splits of the episodes, {} if all are for training, and notes about other splits."""
    known: dict[int, str] = {}
    notes = []
    for name, span in info.splits.items():
        first, _, end = str(span).partition(":")
        if not (first.isdecimal() and end.isdecimal()) or int(end) - int(first) > 10**7:
            raise UserError(
                f"{info.folder / INFO}: split {name!r} is {span!r:.40}, expected such as '0:50': correct it"
            )
        if name not in records.SPLITS and name != "validation":
            notes.append(f"the split {name!r} is ignored: a data set has the splits {' and '.join(records.SPLITS)}")
            continue
        known |= dict.fromkeys(range(int(first), int(end)), "train" if name == "train" else "val")
    return (known if "val" in known.values() else {}), notes


def _item(info: _Info, episode: _Episode, camera: str, commands: Commands | None, split: str | None) -> items.Item:
    is_video = info.is_video(camera)
    opened = functools.partial(video.VideoFile, episode.video, section=episode.section)
    return items.Item(
        name=f"episode_{episode.number:06d}",
        video=episode.video,
        caption=episode.tasks[0] if episode.tasks else "",
        split=split,
        commands=() if commands is None else commands.names,
        open_video=opened if is_video else functools.partial(_open_images, episode.table, camera, episode, info.fps),
        read_tracks=functools.partial(_read_tracks, episode, commands),
    )


def _read_tracks(episode: _Episode, commands: Commands | None, frames: int) -> items.Tracks:
    if frames != episode.frames:
        raise UserError(
            f"{episode.video}: episode {episode.number} shows {frames} frames, expected {episode.frames} as in its "
            "table: download the data set again"
        )
    if commands is None:
        return items.Tracks()
    table = tables.select(episode.table, ["frame_index", commands.key], "episode_index", episode.number)
    if len(table) != frames:
        raise items.count_error(episode.table, f"rows of episode {episode.number}", len(table), frames)
    order = np.argsort(table.column("frame_index").to_numpy())
    try:
        values = np.array(table.column(commands.key).to_pylist(), np.float64).reshape(frames, -1)[order]
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{episode.table}: {commands.key!r} has a row that is not a list of numbers: correct it"
        ) from error
    name = f"episode {episode.number}"
    return items.Tracks(commands=check(values, commands, where=episode.table, episode=name))


def _open_images(path: pathlib.Path, column: str, episode: _Episode, fps: float) -> video.Video:
    """Open the images in the column of a table, one encoded image per row of the episode."""
    table = tables.select(path, ["frame_index", column], "episode_index", episode.number)
    cells = table.column(column).to_pylist()
    order = np.argsort(table.column("frame_index").to_numpy())
    images: list[bytes] = []
    for place in order:
        data = cells[place].get("bytes") if isinstance(cells[place], dict) else None
        if not isinstance(data, bytes):
            raise UserError(
                f"{path}: image {len(images)} of episode {episode.number} is not in the table: write the data set "
                "again with lerobot"
            )
        images.append(data)
    return stored_images.EncodedImages(path, images, fps=fps, name=f"episode {episode.number}")


def _read_fps(path: pathlib.Path) -> float:
    return _read_info(find(path)).fps


FORMAT = Format(
    name="lerobot",
    help="a LeRobot data set of version 2.0, 2.1 or 3.0, or its id OWNER/NAME on the hub; see --camera and --commands",
    list_items=list_items,
    options=("camera", "commands"),
    read_fps=_read_fps,
)
