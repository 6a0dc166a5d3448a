"""Record interactive episodes (video, actions, cameras, captions) from a simulated first-person world.

The same seed gives the same bytes. One of eight episodes is held out for validation.
"""

import pathlib
import time
from collections.abc import Sequence

from jworld.data.recording import recorder
from jworld.utils import arguments, errors, outputs


def parse_size(text: str) -> tuple[int, int]:
    """Parse "192x144" to (192, 144)."""
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise errors.UserError(f"--size is {text!r}, expected WIDTHxHEIGHT, for example 192x144")
    return int(width), int(height)


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Record episodes as set on the command line, and print the next command."""
    parser = arguments.Parser("python scripts/record_episodes.py", str(__doc__))
    parser.add_argument(
        "--source",
        default="auto",
        choices=recorder.SOURCES,
        help="simulator; rooms: built-in ray-cast rooms, a new map per episode; doom: a maze in ViZDoom (pip install "
        "'jworld[demo]'); doom-map01: the first map of Freedoom 2; worlds: two of three episodes from rooms, one from "
        "doom; auto: doom if installed, else rooms",
    )
    parser.add_argument("--episodes", type=arguments.positive, default=64, help="number of episodes")
    parser.add_argument("--frames", type=arguments.positive, default=241, help="frames per episode, 4k + 1")
    parser.add_argument("--size", default="192x144", metavar="WIDTHxHEIGHT", help="image size in pixels, even numbers")
    parser.add_argument("--seed", type=arguments.seed, default=0, help="random seed of the maps and the motion")
    parser.add_argument(
        "--workers", type=arguments.integer(1, 1024), help="processes; no effect on the data (default: one per core)"
    )
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("data/episodes"), help="folder to write")
    options = parser.parse(argv)
    width, height = parse_size(options.size)
    outputs.check_folder("--output", options.output)
    start = time.perf_counter()
    manifest = recorder.record(
        options.output,
        source=options.source,
        episodes=options.episodes,
        frames=options.frames,
        width=width,
        height=height,
        seed=options.seed,
        workers=options.workers,
    )
    entries = manifest["episodes"]
    held_out = sum(entry["split"] == "val" for entry in entries)
    print(
        f"{options.output}: {len(entries)} episodes of {options.frames} frames at {width}x{height} "
        f"from {manifest['source']} ({held_out} held out), {time.perf_counter() - start:.0f} s"
    )
    print(f"next: python -m jworld.precompute --input {options.output} --output {options.output}-records")


if __name__ == "__main__":
    main()
