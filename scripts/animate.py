"""Turn a video into an animated image for a README: python scripts/animate.py rollout.mp4 docs/rollout.webp."""

import pathlib
from collections.abc import Sequence

import PIL.Image

from jworld.data.recording import episodes
from jworld.utils import arguments, errors, outputs


@errors.exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = arguments.Parser(
        "python scripts/animate.py", "Turn a video into an animated WebP or GIF that repeats forever."
    )
    parser.add_argument("video", type=pathlib.Path, metavar="FILE.mp4", help="video to read")
    parser.add_argument("output", type=pathlib.Path, metavar="FILE", help="file to write, .webp or .gif")
    parser.add_argument("--fps", type=arguments.number(0.1, 1000), default=12.0, help="frame rate, in Hz")
    parser.add_argument("--quality", type=arguments.number(0, 100), default=80, help="quality of a WebP")
    options = parser.parse(argv)
    outputs.check_file("FILE", options.output)
    if options.output.suffix.lower() not in (".webp", ".gif"):
        raise errors.UserError(f"FILE {options.output} ends in {options.output.suffix!r}, expected .webp or .gif")
    frames = [PIL.Image.fromarray(frame) for frame in episodes.read_video(options.video)]
    settings = {"duration": round(1000 / options.fps), "loop": 0, "quality": round(options.quality)}
    frames[0].save(options.output, save_all=True, append_images=frames[1:], **settings)
    print(f"wrote {options.output}: {len(frames)} frames, {options.output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
