"""Recorder of episodes from a simulated world; the same seed gives the same bytes."""

import concurrent.futures
import contextlib
import dataclasses
import math
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import shutil
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich import progress

from jworld.data.recording import doom, explorer, rooms
from jworld.data.recording import episodes as episodes_lib
from jworld.utils import errors, folder_lock, interrupts, ranges

WORLDS = ("rooms", *doom.LEVELS)
# Source that mixes worlds -> those of its episodes, in turn. Their number and `VAL_EVERY` have no common divisor, so
# held-out episodes have the same shares.
MIXED = {"worlds": ("rooms", "rooms", "doom")}
SOURCES = (*WORLDS, *MIXED, "auto")
FPS = 16.0
VAL_EVERY = 8  # one of this many episodes is held out, on a map that no training episode uses
# First word of the seed of a map or an episode, so that the two splits never share a map.
TRAIN_MAP, VAL_MAP, WALK, SCRIPT = range(4)
START_TRIES = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordingConfig:
    """Settings of recorded episodes (`config.data.recording`).

    Attributes:
      source: simulator to record from, one of `SOURCES`; "" if the user provides the data.
      directory: folder of the raw episodes.
      episodes: number of episodes, held-out ones included.
      frames: frames per episode, 4k + 1.
      image_size: (width, height) in pixels, even.
      seed: random seed of maps and paths.
      views: names of several synchronized cameras; () for one.
      yaws: direction of each of them, in degrees to the right of where the walker looks; the first is 0.
    """

    source: str = ""
    directory: str = ""
    episodes: ranges.Frames = 64
    frames: ranges.Frames = 241
    image_size: tuple[ranges.Pixels, ranges.Pixels] = (192, 144)
    seed: ranges.Seed = 0
    views: tuple[str, ...] = ()
    yaws: tuple[ranges.Number, ...] = ()

    def __post_init__(self) -> None:
        if len(self.views) != len(self.yaws) or len(self.views) == 1 or self.yaws[:1] not in ((), (0,)):
            raise ValueError(
                f"views are {self.views} and yaws {self.yaws}, expected a direction for each of several cameras, 0 for "
                "the first"
            )
        if self.source and not self.directory.strip():
            raise ValueError("directory is empty, expected the folder of the raw episodes: give one")

    def record(self) -> None:
        """Record the episodes, see `record`."""
        width, height = self.image_size
        record(
            self.directory,
            source=self.source,
            episodes=self.episodes,
            frames=self.frames,
            width=width,
            height=height,
            seed=self.seed,
            views=dict(zip(self.views, self.yaws, strict=True)),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One episode to record; picklable, for a worker process."""

    directory: str
    source: str
    seed: int
    index: int
    split: str
    frames: int
    width: int
    height: int
    fps: float
    views: tuple[tuple[str, float], ...] = ()


def resolve_source(source: str) -> str:
    """Replace "auto" by doom if the engine is installed, else by rooms, and print a note then."""
    if source not in SOURCES:
        raise errors.UserError(f"source is {source!r}, expected one of {', '.join(SOURCES)}")
    if source != "auto":
        if any(world in doom.LEVELS for world in worlds(source)):
            doom.engine()
        return source
    if doom.available():
        return "doom"
    print("vizdoom is not installed (pip install 'jworld[demo]'); recording the built-in ray-cast rooms instead")
    return "rooms"


def worlds(source: str) -> tuple[str, ...]:
    """Return the worlds of a source: those of a mixed one in turn, else the source itself."""
    return MIXED.get(source, (source,))


def world_of(source: str, number: int) -> str:
    """Return the world of the episode with this number, from 0."""
    found = worlds(source)
    return found[number % len(found)]


def make_world(source: str, map_seed: list[int], *, width: int, height: int) -> explorer.World:
    """Create the simulated world of a source that is not mixed; `map_seed` determines its map. Close it after use."""
    if source in doom.LEVELS:
        return doom.Doom(source, map_seed, width=width, height=height)
    return rooms.Rooms(map_seed, width=width, height=height)


def record(
    directory: str | pathlib.Path,
    *,
    source: str,
    episodes: int = 64,
    frames: int = 241,
    width: int = 192,
    height: int = 144,
    seed: int = 0,
    fps: float = FPS,
    workers: int | None = None,
    views: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Record a data set into `directory` and return its manifest.

    `directory` must not exist, or already hold the same data set, which is then left unchanged. `frames` is 4k + 1;
    `width` and `height` are even. `workers` processes (default: one per core) record the episodes into a temporary
    folder that is renamed at the end. The bytes do not depend on their number or order. If another process records into
    `directory`, this one waits for it. `views` are the yaws of several cameras by name, in degrees.
    """
    _check_request(episodes=episodes, frames=frames, width=width, height=height, seed=seed, fps=fps)
    source = resolve_source(source)
    directory = pathlib.Path(directory)
    settings: dict[str, Any] = {"source": source, "seed": seed, "fps": fps, "width": width, "height": height}
    if views:
        settings["views"] = [[name, float(yaw)] for name, yaw in views.items()]
    whole = {**settings, "episodes": episodes, "frames": frames}
    if not _holds(directory, whole):
        with folder_lock.making(directory):
            # Another process may have recorded it meanwhile.
            if not _holds(directory, whole):
                _record(directory, settings, episodes=episodes, frames=frames, workers=workers)
    return episodes_lib.read_manifest(directory)


def _record(
    directory: pathlib.Path, settings: dict[str, Any], *, episodes: int, frames: int, workers: int | None
) -> None:
    """Record all episodes; `settings` are the common keys of a `Job` and the manifest."""
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    last = min(VAL_EVERY, episodes) - 1
    splits = ["val" if episodes > 1 and i % VAL_EVERY == last else "train" for i in range(episodes)]
    jobs = [Job(directory=str(partial), index=i, split=splits[i], frames=frames, **settings) for i in range(episodes)]
    workers = min(workers or os.cpu_count() or 1, episodes)
    context = multiprocessing.get_context("spawn")
    try:
        pool = concurrent.futures.ProcessPoolExecutor(workers, mp_context=context, initializer=_end_with_parent)
        with pool:
            try:
                with interrupts.shielded():
                    done = pool.map(record_episode, jobs)
                entries = list(progress.track(done, f"recording {settings['source']}", total=episodes))
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
                raise
        episodes_lib.write_manifest(partial, episodes=entries, **settings)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _end_with_parent() -> None:
    """End this worker when its parent is gone: it does not get the terminal's Ctrl-C itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def record_episode(job: Job) -> dict[str, Any]:
    """Explore, render and write one episode; return its manifest entry."""
    map_seed = [VAL_MAP if job.split == "val" else TRAIN_MAP, job.seed, job.index]
    source = world_of(job.source, job.index)
    with contextlib.closing(make_world(source, map_seed, width=job.width, height=job.height)) as world:
        rng = np.random.default_rng([WALK, *map_seed])
        poses, actions = explorer.Explorer(world, rng, blocks=(job.frames - 1) // explorer.BLOCK).explore()
        episode = _look(world, poses, actions, name=f"episode_{job.index:05d}", split=job.split, fps=job.fps)
        others = {name: world.render(poses + np.array([0.0, 0.0, math.radians(yaw)]))[0] for name, yaw in job.views[1:]}
    episodes_lib.write_episode(job.directory, episode, others)
    return {"name": episode.name, "split": episode.split, "frames": job.frames, "caption": episode.caption}


def record_scripted(
    source: str, *, seed: int, actions: list[str], width: int, height: int, fps: float = FPS
) -> episodes_lib.Episode:
    """Record a scripted episode in memory: exactly `actions` (one per 4 frames) on the held-out map of `seed`.

    The start is a random position from which no wall stops the script. Starts with an open first and last view are
    preferred. Frame 0 is the start, so the episode has 1 + 4 * len(actions) frames. The world of a mixed source is that
    of the episode with the number `seed`.
    """
    _check_request(episodes=1, frames=1 + explorer.BLOCK * len(actions), width=width, height=height, seed=seed, fps=fps)
    allowed = {"none", *episodes_lib.DIRECTIONS}
    for action in actions:
        if not set(action.split("+")) <= allowed:
            raise errors.UserError(f"action is {action!r}, expected words of {sorted(allowed)} joined by '+'")
    map_seed = [VAL_MAP, seed]
    source = resolve_source(world_of(source, seed))
    with contextlib.closing(make_world(source, map_seed, width=width, height=height)) as world:
        rng = np.random.default_rng([SCRIPT, seed])
        chosen = None
        for _ in range(START_TRIES):
            poses = explorer.run_script(world, world.start(rng), actions)
            if poses is None:
                continue
            chosen = poses if chosen is None else chosen
            if all(explorer.walkable(world, pose) >= 2 * explorer.NEAR * world.motion.step for pose in poses[[0, -1]]):
                chosen = poses
                break
        if chosen is None:
            raise errors.UserError(
                f"no start position of {source} with seed {seed} allows {len(actions)} actions without hitting a wall "
                f"({START_TRIES} tried); shorten the script or change the seed"
            )
        return _look(world, chosen, actions, name=f"scripted_{seed:05d}", split="val", fps=fps)


def _look(
    world: explorer.World, poses: np.ndarray, actions: list[str], *, name: str, split: str, fps: float
) -> episodes_lib.Episode:
    """Render an episode along poses [1 + 4 * len(actions), 3]."""
    frames, w2c, intrinsics = world.render(poses)
    return episodes_lib.Episode(
        name=name,
        split=split,
        caption=world.caption(poses),
        fps=fps,
        frames=frames,
        actions=["none"] + [action for action in actions for _ in range(explorer.BLOCK)],
        w2c=w2c,
        intrinsics=intrinsics,
    )


def _check_request(*, episodes: int, frames: int, width: int, height: int, seed: int, fps: float) -> None:
    if episodes < 1:
        raise errors.UserError(f"episodes is {episodes}, expected at least 1")
    if frames < 5 or frames % explorer.BLOCK != 1:
        raise errors.UserError(f"frames is {frames}, expected 4k + 1 and at least 5, for example 241")
    for name, size in (("width", width), ("height", height)):
        if size < 16 or size % 2:
            raise errors.UserError(f"{name} is {size}, expected an even number of at least 16 pixels")
    if seed < 0:
        raise errors.UserError(f"seed is {seed}, expected 0 or more")
    if not 1 <= fps <= 120:
        raise errors.UserError(f"fps is {fps}, expected 1 to 120")


def _holds(directory: pathlib.Path, expected: dict[str, Any]) -> bool:
    """Return whether the folder holds the expected data set; a `UserError` if it holds anything else."""
    if directory.is_file():
        raise errors.UserError(f"{directory} is a file, expected a new folder; choose another output")
    if not directory.exists() or not any(directory.iterdir()):
        return False
    if not (directory / episodes_lib.MANIFEST).exists():
        raise errors.UserError(f"{directory} holds other files, expected a new folder; choose another output")
    manifest = episodes_lib.read_manifest(directory)
    entries = manifest["episodes"]
    found = {**manifest, "episodes": len(entries), "frames": entries[0]["frames"] if entries else 0}
    if "views" in manifest and "views" not in expected:
        expected = {**expected, "views": None}
    for key, value in expected.items():
        if found.get(key) != value:
            raise errors.UserError(
                f"{directory} holds a data set with {key} {found.get(key)!r}, expected {value!r}; "
                "choose another output or delete it"
            )
    return True
