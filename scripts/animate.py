"""Turn a video into an animated image for a README: python scripts/animate.py rollout.mp4 docs/rollout.webp."""

import argparse
import pathlib
from collections.abc import Sequence

import PIL.Image

from jworld.data.recording import episodes


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Turn a video into an animated WebP or GIF that repeats forever.")
    parser.add_argument("video", type=pathlib.Path, metavar="FILE.mp4", help="video to read (required)")
    parser.add_argument("output", type=pathlib.Path, metavar="FILE", help="file to write, .webp or .gif (required)")
    parser.add_argument("--fps", type=float, default=12.0, metavar="X", help="frames per second (default: 12.0)")
    arguments = parser.parse_args(argv)
    frames = [PIL.Image.fromarray(frame) for frame in episodes.read_video(arguments.video)]
    frames[0].save(
        arguments.output, save_all=True, append_images=frames[1:], duration=round(1000 / arguments.fps), loop=0
    )
    print(f"wrote {arguments.output}: {len(frames)} frames, {arguments.output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
