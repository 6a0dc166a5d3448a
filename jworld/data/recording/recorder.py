"""Record a data set of episodes from a simulated world, the same bytes for the same seed."""

import dataclasses
import multiprocessing
import os
import pathlib
import shutil
from typing import Any

import numpy as np
from rich import progress

from jworld import errors
from jworld.data import episodes as episodes_lib
from jworld.data.recording import explorer, rooms

SOURCES = ("rooms", "doom", "auto")
VAL_EVERY = 8  # one episode in so many is held out, on a map that no training episode uses
TRAIN_MAP, VAL_MAP = 0, 1  # first word of a map's seed: the two kinds of maps never meet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One episode to record; picklable, for a worker process."""

    directory: str
    source: str
    seed: int
    index: int
    frames: int
    width: int
    height: int
    fps: float

    @property
    def split(self) -> str:
        return "val" if self.index % VAL_EVERY == VAL_EVERY - 1 else "train"


def make_world(source: str, map_seed: list[int], *, width: int, height: int) -> explorer.World:
    """The simulated world of a source; `map_seed` chooses its map."""
    return rooms.Rooms(map_seed, width=width, height=height)


def record_episode(job: Job) -> dict[str, Any]:
    """Explore, render and write one episode; -> its manifest entry."""
    map_seed = [VAL_MAP if job.split == "val" else TRAIN_MAP, job.seed, job.index]
    world = make_world(job.source, map_seed, width=job.width, height=job.height)
    walker = explorer.Explorer(world, np.random.default_rng([2, *map_seed]), blocks=(job.frames - 1) // explorer.BLOCK)
    poses, actions = walker.explore()
    episode = _look(world, poses, actions, name=f"episode_{job.index:05d}", split=job.split, fps=job.fps)
    episodes_lib.write_episode(job.directory, episode)
    return {"name": episode.name, "split": episode.split, "frames": job.frames, "caption": episode.caption}


def _look(
    world: explorer.World, poses: np.ndarray, actions: list[str], *, name: str, split: str, fps: float
) -> episodes_lib.Episode:
    frames, w2c, intrinsics = world.render(poses)
    per_frame = ["none"] + [action for action in actions for _ in range(explorer.BLOCK)]
    return episodes_lib.Episode(
        name=name,
        split=split,
        caption=world.caption(poses),
        fps=fps,
        frames=frames,
        actions=per_frame,
        w2c=w2c,
        intrinsics=intrinsics,
    )


def record(
    directory: str | pathlib.Path,
    *,
    source: str,
    episodes: int = 64,
    frames: int = 241,
    width: int = 192,
    height: int = 144,
    seed: int = 0,
    fps: float = rooms.FPS,
    workers: int | None = None,
) -> dict[str, Any]:
    """Record a data set into `directory` and return its manifest.

    `directory` must not exist, or hold this very data set (then nothing is done). `frames` is 4k + 1, `width` and
    `height` are even. The episodes are recorded by `workers` processes (one per core) into a temporary folder that
    gets its name at the end; neither their number nor their order changes a byte.
    """
    directory = pathlib.Path(directory)
    partial = directory.with_name(directory.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    jobs = [
        Job(
            directory=str(partial),
            source=source,
            seed=seed,
            index=index,
            frames=frames,
            width=width,
            height=height,
            fps=fps,
        )
        for index in range(episodes)
    ]
    workers = min(workers or os.cpu_count() or 1, episodes)
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        entries = list(progress.track(pool.imap(record_episode, jobs), f"recording {source}", total=episodes))
    episodes_lib.write_manifest(
        partial, source=source, seed=seed, fps=fps, width=width, height=height, episodes=entries
    )
    partial.rename(directory)
    return episodes_lib.read_manifest(directory)
