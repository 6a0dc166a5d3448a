"""python -m jworld.play.view --episodes data/rooms/episodes --output rooms.rrd
python -m jworld.play.view --checkpoint runs/ar_mem --keys keys-0.json --output played.rrd

Writes a recording for the Rerun viewer: frames with their cameras, and which past frames a step was conditioned on.
"""

import argparse
import pathlib
from collections.abc import Sequence

import numpy as np
import rich.console

import jworld
from jworld.cameras import actions, poses
from jworld.data.recording import episodes
from jworld.evaluation import rerun_files
from jworld.play import worker
from jworld.systems import key_logs, live
from jworld.utils import arguments, compilation, errors, files, outputs

COMMAND = "python -m jworld.play.view"
DESCRIPTION = """Write a recording for the Rerun viewer, which shows frames in their cameras and moves through time.

Shown are either recorded or played episodes, or a played session, which the checkpoint makes again from its keys; lines
then lead from the camera to those of the past frames that a step was conditioned on."""


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    options = parse(argv)
    console = rich.console.Console(highlight=False, soft_wrap=True, markup=False)
    outputs.check_file("--output", options.output)
    rerun_files.rerun()
    compilation.use_cache()
    with files.replacing(options.output) as partial:
        recording = rerun_files.Recording(partial)
        if options.episodes is not None:
            written = show_episodes(recording, options.episodes, options.limit)
        else:
            log = key_logs.read(options.keys)
            world = worker.World(jworld.load(str(options.checkpoint)))
            written = show_session(recording, world, log, f"--keys {options.keys}")
        recording.close()
    console.print(f"{options.output}: {written}. Show it with: rerun {options.output}")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = arguments.Parser(COMMAND, DESCRIPTION)
    add = parser.add_argument
    add(
        "--episodes",
        type=pathlib.Path,
        metavar="DIR",
        help="recorded episodes, such as those of jworld play (required without --keys)",
    )
    add("--limit", type=arguments.positive, default=8, metavar="N", help="episodes that are shown")
    add(
        "--checkpoint",
        type=pathlib.Path,
        metavar="DIR",
        help="run, released or imported weights (required with --keys)",
    )
    add("--keys", type=pathlib.Path, metavar="FILE", help="key log of jworld play (required without --episodes)")
    add("--output", type=pathlib.Path, default=pathlib.Path("view.rrd"), metavar="FILE", help="recording to write")
    parser.only_with("--limit", "--episodes")
    options = parser.parse(argv)
    session = options.checkpoint is not None and options.keys is not None
    if (options.episodes is not None) == session or (options.checkpoint is None) != (options.keys is None):
        parser.error("give either --episodes, or --checkpoint and --keys")
    return options


def show_episodes(recording: rerun_files.Recording, folder: pathlib.Path, limit: int) -> str:
    """Log the first episodes of a folder, and describe them."""
    names = [entry["name"] for entry in episodes.read_manifest(folder)["episodes"]][:limit]
    count = 0
    for name in names:
        episode = episodes.read_episode(folder, name)
        intrinsics = poses.intrinsics_matrices(episode.intrinsics)
        recording.path(name, episode.w2c)
        for number, frame in enumerate(episode.frames):
            recording.frame(name, number, frame, seconds=number / episode.fps, text=episode.actions[number])
            recording.camera(name, episode.w2c[number], intrinsics[number], (frame.shape[1], frame.shape[0]))
        count += len(episode.frames)
    return f"{count} frames of {len(names)} episodes"


def show_session(recording: rerun_files.Recording, world: worker.World, log: key_logs.KeyLog, where: str) -> str:
    """Make a session again from its keys and log it, and describe it; `where` is the file, for errors."""
    game, name, count, differs = worker.Game(world), "session", 0, False
    cameras: list[np.ndarray] = []
    game.start(log.start)
    for number, entry in enumerate(log.entries):
        try:
            step = game.step(live.split(world.keys, entry.keys), entry.prompt)
        except ValueError as error:
            raise errors.UserError(f"{where}: step {number + 1}: {error}: give the log of this model") from error
        differs |= entry.frames not in ("", step.entry.frames)
        if step.view is not None:
            cameras += list(step.view.w2c)
        for frame in step.frames:
            recording.frame(name, count, frame, seconds=count / world.fps, text=entry.keys)
            if step.view is not None:
                # Frame 0 is the first latent, and every further latent has four frames.
                row = -(-count // actions.FRAMES_PER_LATENT) - step.view.first
                w2c = step.view.w2c[row]
                recording.camera(name, w2c, step.view.intrinsics[row], world.size)
                recording.links(name, w2c, [cameras[index] for index in step.view.context])
            count += 1
    if cameras:
        recording.path(name, np.stack(cameras))
    compared = ", which are not those that were played: give the same weights and device" if differs else ""
    return f"{count} frames of {len(log.entries)} steps{compared}"


if __name__ == "__main__":
    main()
