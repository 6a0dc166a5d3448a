"""The command `python -m jworld.precompute`: encodes videos with captions, cameras and actions as training records.

Videos are resampled to one size and frame rate, cut into clips and encoded; every distinct caption is encoded once. The
work is divided into shards, which several processes can share. The same command again resumes an interrupted run.
"""

import argparse
import dataclasses
import pathlib
import shlex
import sys
from collections.abc import Sequence

import rich.console

from jworld import systems
from jworld.data.inputs import clips, fitting, formats
from jworld.data.records import shards
from jworld.encoders import choices, registry, stored
from jworld.models.autoencoders import linear
from jworld.parallel import startup
from jworld.precompute import job
from jworld.precompute import settings as settings_lib
from jworld.precompute.settings import Settings
from jworld.utils import arguments, compilation, outputs
from jworld.utils.errors import UserError, exit_on_user_error

EPILOG = """formats:
{formats}

examples:
  {command} --input data/mine --output data/mine-records
  {command} --input clips --format videos --fps 24 --frames 77 --width 832 --height 480 \\
      --autoencoder weights/hunyuan15-vae --text-encoder qwen2.5-vl:weights/qwen --output data/clips-records"""


#: Frames per second, of which a clip has as many more than its video as this is larger than the video's rate.
_RATE = arguments.number(1e-3, 1000, "a number from 0.001 to 1000")
_MOST_SHARDS = 1 << 16


def _add_videos(parser: arguments.Parser) -> None:
    add = parser.add_argument_group("videos").add_argument
    add("--root", metavar="DIR", help="base folder of the relative paths in an index file (default: its folder)")
    add("--prompt", default="", help="caption of the videos without one (default: none, and such videos are refused)")
    add("--allow-missing-captions", action="store_true", help="give videos without a caption an empty one")
    untimed = " and ".join(name for name, entry in formats.FORMATS.items() if entry.untimed)
    add(
        "--frames-fps",
        type=_RATE,
        help=f"frame rate of folders of images and of {untimed} data, in Hz (default: none, or --fps for these data)",
    )
    add(
        "--frames-size",
        type=arguments.checked("WIDTHxHEIGHT", "WIDTHxHEIGHT such as 160x90", _size),
        help="size of the frames of jasmine data in pixels (default: that of Jasmine's own data sets, by its pixels)",
    )
    add(
        "--camera",
        default="",
        metavar="KEY,...",
        help="camera to use of cosmos, lerobot and rlds data; of cosmos and lerobot data also several synchronized "
        "ones in the order of the model, such as front,left,right or, with the ids of the model's cameras, "
        "front=0,left=5,right=1 (default: the only one)",
    )
    add(
        "--commands",
        default="",
        metavar="KEY[:NAME,...]",
        help="numbers of lerobot and rlds data that steer the model, such as observation.state or action:x,y (default: "
        "action)",
    )
    add(
        "--val-share",
        type=float,
        default=Settings.val_share,
        help="share of held-out videos, from 0 to 1, if the format has no splits",
    )
    width, height = settings_lib.SIZE
    add("--width", type=int, help=f"width of the images in pixels (default: {width} with a linear autoencoder)")
    add("--height", type=int, help=f"height of the images in pixels (default: {height} with a linear autoencoder)")
    fits, resamplings = formats.describe_defaults("fit"), formats.describe_defaults("resampling")
    add("--fit", choices=fitting.MODES, help=f"how frames are brought to that size (default: {fits})")
    add("--resampling", choices=fitting.RESAMPLINGS, help=f"filter that resizes frames (default: {resamplings})")
    with_rate = ", ".join(name for name, entry in formats.FORMATS.items() if entry.read_fps)
    add("--fps", type=_RATE, help=f"frame rate of the clips, in Hz (required, except for {with_rate}: as recorded)")
    add("--frames", type=int, help="frames of a clip, 4k+1, such as 77 (default: all frames of a video)")
    add("--stride", type=int, help="frames from the start of one clip to the start of the next (default: --frames)")
    add(
        "--remainder",
        choices=clips.REMAINDERS,
        default=Settings.remainder,
        help="frames after the last whole clip: drop them, or shift a last clip so that it ends with the video",
    )
    add("--repeat-frames", action="store_true", help="repeat frames of videos whose frame rate is below --fps")
    add(
        "--short-videos",
        choices=clips.SHORT_VIDEOS,
        default=Settings.short_videos,
        help="videos shorter than --frames: refuse them, or stretch them over one clip, as The Matrix does",
    )


def _add_work(parser: arguments.Parser) -> None:
    add = parser.add_argument_group("work").add_argument
    add(
        "--shard",
        type=arguments.checked("I/N", "I/N such as 0/4", _shard),
        help="run as process I of N, all with the same command (default: by SLURM or JAX_PROCESS_ID, else 0/1)",
    )
    add(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at a bad video: stop, and resume when it is repaired; or skip it, list it in report.json and exit with "
        "code 2 at the end",
    )
    add(
        "--items-per-shard",
        type=int,
        default=Settings.items_per_shard,
        help="videos per file; an interruption loses the work on at most one file per process",
    )
    add(
        "--threads",
        type=arguments.integer(1, 1024),
        help="videos to read at once (default: number of CPU cores, at most 8)",
    )


def _add_autoencoder(parser: arguments.Parser) -> None:
    add = parser.add_argument_group("autoencoder").add_argument
    add(
        "--autoencoder-dtype",
        choices=("float32", "bfloat16"),
        help="dtype of an autoencoder's activations (default: that of its file)",
    )
    add(
        "--tile",
        type=arguments.checked("WIDTHxHEIGHT", "WIDTHxHEIGHT such as 360x240", _tile),
        help="size in pixels of overlapping tiles in which a network encodes, in less memory (default: whole frames)",
    )
    add(
        "--keep-posterior",
        action="store_true",
        help="store the log variance of latents, for training that samples latents",
    )
    add(
        "--spatial-ratio",
        type=int,
        default=settings_lib.LINEAR.spatial_ratio,
        choices=(8, 16),
        help="pixels per latent in each direction, for a fitted linear autoencoder",
    )
    add(
        "--channels",
        type=int,
        default=settings_lib.LINEAR.channels,
        help="channels of a latent, for a fitted linear autoencoder",
    )
    add(
        "--whitening",
        type=float,
        default=Settings.whitening,
        help="share of whitening of a fitted linear autoencoder, from 0 to 1: 1 gives all channels the same strength",
    )
    add(
        "--seed",
        type=arguments.seed,
        default=0,
        help="random seed for the patches that a linear autoencoder is fitted on",
    )


def _parser() -> arguments.Parser:
    described = "\n".join(f"  {name:10} {entry.help}" for name, entry in formats.FORMATS.items())
    parser = arguments.Parser(
        job.COMMAND,
        "Encode videos with captions, cameras and actions as training records. The same command again resumes an "
        "interrupted run.",
        epilog=EPILOG.format(formats=described, command=arguments.program(job.COMMAND)),
    )
    add = parser.add_argument
    add("--input", required=True, type=pathlib.Path, help="folder of the videos, or index file")
    add("--format", choices=tuple(formats.FORMATS), default=Settings.format, help="layout of the videos, see below")
    add("--output", required=True, type=pathlib.Path, metavar="DIR", help="folder for the records")
    add(
        "--text-embeddings",
        metavar="FILE",
        help="safetensors file with encoded captions, instead of a text encoder (default: none)",
    )
    _add_videos(parser)
    choices.add_arguments(
        parser,
        defaults={
            "--autoencoder": "a linear autoencoder, fitted on the training videos",
            choices.TEXT.flag: settings_lib.TEXT_ENCODER,
            choices.GLYPH.flag: settings_lib.GLYPH_ENCODER,
            choices.IMAGE.flag: settings_lib.IMAGE_ENCODER,
        },
    )
    _add_autoencoder(parser)
    _add_work(parser)
    for option in ("--stride", "--remainder", "--short-videos"):
        parser.only_with(option, "--frames")
    parser.only_with("--autoencoder-dtype", "--autoencoder")
    for option in ("--spatial-ratio", "--channels", "--whitening", "--seed"):
        parser.not_with(option, "--autoencoder")
    parser.not_with("--allow-missing-captions", "--prompt")
    return parser


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()) or int(count) > _MOST_SHARDS:
        raise ValueError(text)
    return int(index), int(count)


def _tile(text: str) -> tuple[int, int]:
    """Return (height, width)."""
    width, height = _size(text)
    return height, width


def _size(text: str) -> tuple[int, int]:
    """Return (width, height)."""
    width, cross, height = text.partition("x")
    if not (cross and width.isdecimal() and height.isdecimal()) or not int(width) * int(height):
        raise ValueError(text)
    return int(width), int(height)


def _settings(options: argparse.Namespace) -> Settings:
    given = choices.EncoderOverrides.from_arguments(options)
    if options.text_embeddings is not None:
        given = _with_embeddings(given, options.text_embeddings)
    names = (
        *(
            "input",
            "format",
            "allow_missing_captions",
            "prompt",
            "frames_fps",
            "frames_size",
            "camera",
            "commands",
            "width",
            "height",
            "fit",
        ),
        *("resampling", "fps", "frames", "stride", "remainder", "repeat_frames", "short_videos", "val_share"),
        *("items_per_shard", "autoencoder_dtype", "tile", "keep_posterior", "whitening", "seed"),
    )
    return Settings(
        root=None if options.root is None else pathlib.Path(options.root),
        given=given,
        linear=linear.LinearConfig(channels=options.channels, spatial_ratio=options.spatial_ratio),
        **{name: getattr(options, name) for name in names},
    )


def _with_embeddings(given: choices.EncoderOverrides, file: str) -> choices.EncoderOverrides:
    """Use the file in place of a text encoder and, if it has glyph states, of a glyph encoder."""
    if given.text_encoder is not None:
        raise UserError(f"--text-encoder {given.text_encoder} and --text-embeddings {file}: give one of them")
    spec = f"{stored.KIND}:{file}"
    glyphs = spec if registry.read_embeddings(file)[1] is not None else None
    return dataclasses.replace(given, text_encoder=spec, glyph_encoder=given.glyph_encoder or glyphs)


def next_command(summary: shards.Summary) -> tuple[str, list[str]]:
    """Return the command that trains on the set, or the one that validates it if no recipe fits, and notes about it."""
    show = shlex.join(["python", "-m", "jworld.precompute.validate", str(summary.directory)])
    return systems.train_command(summary.manifest, summary.directory) or (show, [])


def _print_summary(summary: shards.Summary, console: rich.console.Console) -> None:
    clips = ", ".join(f"{count} {split}" for split, count in summary.clips.items())
    height, width, channels = summary.manifest["latent_shape"]
    console.print(
        f"{summary.directory}: {clips} clips of {width}x{height} latents with {channels} channels, {summary.amount}",
        soft_wrap=True,
        highlight=False,
    )
    if (psnr := summary.manifest.get("reconstruction_psnr")) is not None:
        console.print(f"reconstruction of held-out clips: {psnr:.1f} dB", highlight=False)
    command, notes = next_command(summary)
    if not summary.clips["val"]:
        notes = ["nothing is held out, so the trained model cannot be measured: see --val-share", *notes]
    for line in (*(f"note: {note}" for note in notes), f"next: {command}"):
        console.print(line, soft_wrap=True, highlight=False, markup=False, emoji=False)
    if summary.skipped:
        report = summary.directory / shards.REPORT
        console.print(f"left out {len(summary.skipped)} bad videos, see {report}", soft_wrap=True, highlight=False)
        sys.exit(2)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = _parser().parse(argv)
    compilation.use_cache()
    console = rich.console.Console()
    outputs.check_folder("--output", options.output)
    summary = job.precompute(
        _settings(options),
        options.output,
        shard=options.shard or startup.part(),
        skip_errors=options.on_error == "skip",
        threads=options.threads,
        console=console,
    )
    if summary is None:
        console.print(
            f"the part of this process is written to {options.output}; other processes have not finished theirs",
            soft_wrap=True,
            highlight=False,
        )
        return
    _print_summary(summary, console)


if __name__ == "__main__":
    main()
