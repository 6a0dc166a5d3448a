"""Recorded or played episodes as a LeRobot data set of version 3.0, for policies and for other trainers.

Every episode has a table and a video of its own, which version 3.0 allows. `action` of a frame says which keys lead to
the next frame, one number per direction; `observation.state` is the pose of the camera: its position, and its rotation
as a vector (axis times angle in radians), camera to world with OpenCV axes.

Source of the layout: lerobot 0.4, `datasets/utils.py`.
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.spatial.transform
from pyarrow import parquet

from jworld.cameras import actions
from jworld.data.recording import episodes
from jworld.utils import files

VERSION = "v3.0"
CAMERA = "observation.images.front"
STATE = ("x", "y", "z", "rotation_x", "rotation_y", "rotation_z")
DIRECTIONS = (*actions.TRANSLATIONS, *actions.ROTATIONS)
#: Files of a folder of version 3.0.
CHUNK = 1000
#: Frames of an episode whose pixels go into the statistics.
PIXEL_FRAMES = 20
_PLACE = "chunk-{:03d}/file-{:03d}"

Numbers = dict[str, np.ndarray]


def write(source: str | pathlib.Path, output: str | pathlib.Path, *, advance: Callable[[], None] = lambda: None) -> int:
    """Write all episodes of the data set `source` below the folder `output`, and return their number.

    `advance` is called after every episode. A `UserError` if an episode is absent or inconsistent.
    """
    source, output = pathlib.Path(source), pathlib.Path(output)
    manifest = episodes.read_manifest(source)
    tasks: dict[str, int] = {}
    rows: list[dict[str, Any]] = []
    begin = 0
    for number, entry in enumerate(manifest["episodes"]):
        episode = episodes.read_episode(source, entry["name"])
        task = tasks.setdefault(episode.caption, len(tasks))
        place = divmod(number, CHUNK)
        columns = _columns(episode, number, begin, task)
        _write_table(columns, output / "data" / f"{_PLACE.format(*place)}.parquet")
        video = output / "videos" / CAMERA / f"{_PLACE.format(*place)}.mp4"
        video.parent.mkdir(parents=True, exist_ok=True)
        files.copy(source / entry["name"] / "video.mp4", video)
        rows.append(_row(episode, number, begin, place, columns))
        begin += len(episode.frames)
        size = episode.frames.shape[1:]
        advance()
    _write_table(_stacked(rows), output / "meta/episodes/chunk-000/file-000.parquet")
    _write_tasks(tasks, output / "meta/tasks.parquet")
    files.write_json(output / "meta/stats.json", _totals(rows))
    files.write_json(output / "meta/info.json", _info(len(rows), begin, len(tasks), float(manifest["fps"]), size))
    return len(rows)


def _columns(episode: episodes.Episode, number: int, begin: int, task: int) -> Numbers:
    """Return the columns of the T frames of an episode."""
    frames = len(episode.frames)
    # Here a frame has the keys that led to it, there those that lead on from it.
    words = [*episode.actions[1:], "none"]
    held = [[name in word.split("+") for name in DIRECTIONS] for word in words]
    c2w = np.linalg.inv(episode.w2c)
    turns = scipy.spatial.transform.Rotation.from_matrix(c2w[:, :3, :3]).as_rotvec()
    return {
        "action": np.array(held, np.float32),
        "observation.state": np.concatenate([c2w[:, :3, 3], turns], axis=1).astype(np.float32),
        "timestamp": (np.arange(frames) / episode.fps).astype(np.float32),
        "frame_index": np.arange(frames),
        "episode_index": np.full(frames, number),
        "index": begin + np.arange(frames),
        "task_index": np.full(frames, task),
    }


def _row(
    episode: episodes.Episode, number: int, begin: int, place: tuple[int, int], columns: Numbers
) -> dict[str, Any]:
    """Return what meta/episodes says of one episode."""
    frames = len(episode.frames)
    row: dict[str, Any] = {
        "episode_index": number,
        "tasks": [episode.caption],
        "length": frames,
        "data/chunk_index": place[0],
        "data/file_index": place[1],
        "dataset_from_index": begin,
        "dataset_to_index": begin + frames,
        f"videos/{CAMERA}/chunk_index": place[0],
        f"videos/{CAMERA}/file_index": place[1],
        f"videos/{CAMERA}/from_timestamp": 0.0,
        f"videos/{CAMERA}/to_timestamp": frames / episode.fps,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
    }
    shown = episode.frames[:: -(-frames // PIXEL_FRAMES)].reshape(-1, 3) / 255
    for name, values in (*columns.items(), (CAMERA, shown)):
        flat = values.reshape(len(values), -1).astype(np.float64)
        found = {
            "min": flat.min(0),
            "max": flat.max(0),
            "mean": flat.mean(0),
            "std": flat.std(0),
            **{f"q{share:02d}": np.quantile(flat, share / 100, axis=0) for share in (1, 10, 50, 90, 99)},
        }
        if name == CAMERA:
            found = {key: value.reshape(3, 1, 1) for key, value in found.items()}
        row |= {f"stats/{name}/{key}": value.tolist() for key, value in found.items()}
        row[f"stats/{name}/count"] = [len(flat)]
    return row


def _totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the statistics of the data set from those of its episodes, as lerobot combines them."""
    totals: dict[str, dict[str, Any]] = {}
    for name in (key.split("/")[1] for key in rows[0] if key.startswith("stats/") and key.endswith("/count")):
        parts = {
            key.rsplit("/", 1)[1]: np.array([row[key] for row in rows], np.float64)
            for key in rows[0]
            if key.startswith(f"stats/{name}/")
        }
        weights = parts["count"].reshape(-1, *[1] * (parts["mean"].ndim - 1)) / parts["count"].sum()
        mean = (weights * parts["mean"]).sum(0)
        spread = (weights * (parts["std"] ** 2 + (parts["mean"] - mean) ** 2)).sum(0)
        entry = {"min": parts["min"].min(0), "max": parts["max"].max(0), "mean": mean, "std": np.sqrt(spread)}
        # Not the quantiles of all frames, but what lerobot computes in their place.
        entry |= {key: (weights * value).sum(0) for key, value in parts.items() if key.startswith("q")}
        totals[name] = {key: value.tolist() for key, value in entry.items()}
        totals[name]["count"] = [int(parts["count"].sum())]
    return totals


def _info(count: int, frames: int, tasks: int, fps: float, size: tuple[int, ...]) -> dict[str, Any]:
    """Return meta/info.json; `size` is height, width and channels of a frame."""

    def feature(dtype: str, shape: Sequence[int], names: Sequence[str] | None = None) -> dict[str, Any]:
        return {"dtype": dtype, "shape": list(shape), "names": None if names is None else list(names)}

    camera = feature("video", size, ("height", "width", "channels"))
    camera["info"] = {"video.height": size[0], "video.width": size[1], "video.channels": size[2], "video.fps": fps}
    camera["info"] |= {"video.codec": "h264", "video.pix_fmt": "yuv420p", "has_audio": False}
    camera["info"]["video.is_depth_map"] = False
    numbers = {name: feature("int64", (1,)) for name in ("frame_index", "episode_index", "index", "task_index")}
    return {
        "codebase_version": VERSION,
        "robot_type": "camera",
        "total_episodes": count,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": int(fps) if fps == int(fps) else fps,
        "splits": {"train": f"0:{count}"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {
            "action": feature("float32", (len(DIRECTIONS),), DIRECTIONS),
            "observation.state": feature("float32", (len(STATE),), STATE),
            CAMERA: camera,
            "timestamp": feature("float32", (1,)),
            **numbers,
        },
    }


def _stacked(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {key: [row[key] for row in rows] for key in rows[0]}


def _write_table(columns: Mapping[str, np.ndarray | list[Any]], path: pathlib.Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
        if isinstance(values, np.ndarray) and values.ndim == 2
        else pa.array(values)
        for name, values in columns.items()
    }
    with files.replacing(path) as partial:
        parquet.write_table(pa.table(arrays), partial)


def _write_tasks(tasks: Mapping[str, int], path: pathlib.Path) -> None:
    """Write the table that pandas reads with the tasks as its index."""
    index = "__index_level_0__"
    described = [
        {"name": name, "field_name": field, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
        for name, field, kind, numpy in (
            ("task_index", "task_index", "int64", "int64"),
            (None, index, "unicode", "object"),
        )
    ]
    facts = {"index_columns": [index], "column_indexes": [], "columns": described, "pandas_version": "2.0.0"}
    table = pa.table({"task_index": pa.array(list(tasks.values()), pa.int64()), index: pa.array(list(tasks))})
    with files.replacing(path) as partial:
        parquet.write_table(table.replace_schema_metadata({"pandas": json.dumps(facts)}), partial)
