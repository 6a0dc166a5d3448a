"""python -m jworld.precompute: videos with captions, cameras and actions -> training records.

Videos are brought to one size and frame rate, cut into clips and encoded; every distinct caption is encoded once. The
work is cut into shards, which several processes can share; a command that was stopped goes on where it was when it is
repeated.
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
from jworld.encoders import model_encoders, registry, stored
from jworld.models.autoencoders import linear
from jworld.parallel import startup
from jworld.precompute import job
from jworld.precompute import settings as settings_lib
from jworld.precompute.settings import Settings
from jworld.utils import compilation
from jworld.utils.errors import UserError, exit_on_user_error

EXAMPLES = f"""

examples:
  {job.COMMAND} --input data/mine --output data/mine-records
  {job.COMMAND} --input clips --format videos --fps 24 --frames 77 --width 832 --height 480 \\
      --autoencoder weights/hunyuan15-vae --text-encoder qwen2.5-vl:weights/qwen --output data/clips-records
"""


def _add_videos(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("videos").add_argument
    add("--root", metavar="DIR", help="where relative paths of an index file start (default: its folder)")
    add("--allow-missing-captions", action="store_true", help="videos without a caption get an empty one")
    add("--frames-fps", type=float, metavar="X", help="pictures per second of folders of pictures")
    add(
        "--val-share",
        type=float,
        default=Settings.val_share,
        metavar="X",
        help="share of held-out videos where the format does not say which are (default %(default)s)",
    )
    width, height = settings_lib.SIZE
    add("--width", type=int, metavar="N", help=f"of the model's images (default: {width} with a linear codec)")
    add("--height", type=int, metavar="N", help=f"of the model's images (default: {height} with a linear codec)")
    fits, resamplings = formats.describe_defaults("fit"), formats.describe_defaults("resampling")
    add("--fit", choices=fitting.MODES, help=f"how frames get there (default: {fits})")
    add("--resampling", choices=fitting.RESAMPLINGS, help=f"how pixels are averaged (default: {resamplings})")
    with_rate = ", ".join(name for name, entry in formats.FORMATS.items() if entry.read_fps)
    add("--fps", type=float, metavar="X", help=f"frame rate of the clips (needed, except for {with_rate}: theirs)")
    add("--frames", type=int, metavar="N", help="frames of a clip: 4k+1, such as 77 (default: a clip is a whole video)")
    add("--stride", type=int, metavar="N", help="from the start of one clip to that of the next (default: --frames)")
    add(
        "--remainder",
        choices=clips.REMAINDERS,
        default=Settings.remainder,
        help="frames after the last clip: left out, or a clip that overlaps the one before (default %(default)s)",
    )
    add("--repeat-frames", action="store_true", help="show frames twice in videos that have too few for --fps")


def _add_work(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("work").add_argument
    add(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="this is process I of N; all get the same command (default: as SLURM or JAX_PROCESS_ID say, else 0/1)",
    )
    add(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at a bad video: stop, to go on when it is mended, or leave it out and list it in report.json, with exit "
        "code 2 at the end (default %(default)s)",
    )
    add(
        "--items-per-shard",
        type=int,
        default=Settings.items_per_shard,
        metavar="N",
        help="videos per file: what a stop can cost (default %(default)s)",
    )
    add("--threads", type=int, metavar="N", help="videos that are read at once (default: as many as cores, at most 8)")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=job.COMMAND,
        description="Encode videos with captions, cameras and actions into training records.\nRepeat the same command "
        "to go on after an interruption.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="formats:\n"
        + "\n".join(f"  {name:10} {entry.help}" for name, entry in formats.FORMATS.items())
        + EXAMPLES,
    )
    add = parser.add_argument
    add("--input", required=True, type=pathlib.Path, metavar="PATH", help="folder of the videos, or index file")
    add(
        "--format",
        choices=tuple(formats.FORMATS),
        default=Settings.format,
        help="how the videos are laid out, see below (default %(default)s)",
    )
    add("--output", required=True, type=pathlib.Path, metavar="DIR", help="folder for the records")
    _add_videos(parser)
    model_encoders.add_arguments(
        parser,
        defaults={
            "--autoencoder": "a linear codec, fitted on the training videos",
            model_encoders.TEXT.flag: settings_lib.TEXT_ENCODER,
            model_encoders.GLYPH.flag: settings_lib.GLYPH_ENCODER,
            model_encoders.IMAGE.flag: settings_lib.IMAGE_ENCODER,
        },
    )
    add("--text-embeddings", metavar="FILE", help="safetensors file with the encoded captions, for a text encoder")
    add(
        "--autoencoder-dtype",
        choices=("float32", "bfloat16"),
        help="what an autoencoder computes in (default: what its file says)",
    )
    add("--keep-posterior", action="store_true", help="keep the log variance of latents, for training that draws them")
    add(
        "--spatial-ratio",
        type=int,
        default=settings_lib.LINEAR.spatial_ratio,
        choices=(8, 16),
        help="of the fitted codec: pixels per latent, each way (default %(default)s)",
    )
    add(
        "--channels",
        type=int,
        default=settings_lib.LINEAR.channels,
        metavar="N",
        help="of the fitted codec: channels of a latent (default %(default)s)",
    )
    add("--seed", type=int, default=0, help="of the patches that the codec is fitted on (default %(default)s)")
    _add_work(parser)
    return parser


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r}, expected I/N such as 0/4")
    return int(index), int(count)


def _settings(arguments: argparse.Namespace) -> Settings:
    given = model_encoders.EncoderOverrides.from_arguments(arguments)
    if arguments.text_embeddings is not None:
        given = _with_embeddings(given, arguments.text_embeddings)
    names = (
        *("input", "format", "allow_missing_captions", "frames_fps", "width", "height", "fit", "resampling", "fps"),
        *("frames", "stride", "remainder", "repeat_frames", "val_share", "items_per_shard"),
        *("autoencoder_dtype", "keep_posterior", "seed"),
    )
    return Settings(
        root=None if arguments.root is None else pathlib.Path(arguments.root),
        given=given,
        linear=linear.LinearConfig(channels=arguments.channels, spatial_ratio=arguments.spatial_ratio),
        **{name: getattr(arguments, name) for name in names},
    )


def _with_embeddings(given: model_encoders.EncoderOverrides, file: str) -> model_encoders.EncoderOverrides:
    """The file in the place of a text encoder and, if it has states of glyphs, of a glyph encoder."""
    if given.text_encoder is not None:
        raise UserError(f"--text-encoder {given.text_encoder} and --text-embeddings {file}: give one of them")
    spec = f"{stored.KIND}:{file}"
    glyphs = spec if registry.read_embeddings(file)[1] is not None else None
    return dataclasses.replace(given, text_encoder=spec, glyph_encoder=given.glyph_encoder or glyphs)


def next_command(summary: shards.Summary) -> str:
    """Return the command that trains on the set, or the one that shows it where no recipe fits."""
    show = shlex.join(["python", "-m", "jworld.precompute.validate", str(summary.directory)])
    return systems.train_command(summary.manifest, summary.directory) or show


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
    console.print(f"next: {next_command(summary)}", soft_wrap=True, highlight=False, markup=False)
    if summary.skipped:
        report = summary.directory / shards.REPORT
        console.print(f"left out {len(summary.skipped)} bad videos, see {report}", soft_wrap=True, highlight=False)
        sys.exit(2)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    compilation.use_cache()
    console = rich.console.Console()
    summary = job.precompute(
        _settings(arguments),
        arguments.output,
        shard=arguments.shard or startup.part(),
        skip_errors=arguments.on_error == "skip",
        threads=arguments.threads,
        console=console,
    )
    if summary is None:
        console.print(
            f"this process's part of {arguments.output} is written; the set is complete when the others are done",
            soft_wrap=True,
            highlight=False,
        )
        return
    _print_summary(summary, console)


if __name__ == "__main__":
    main()
