"""python -m jworld.systems.worldplay.import_data: convert WorldPlay's published data to records.

The data set is written shard by shard. The same command again resumes an interrupted run.
"""

import argparse
import dataclasses
import hashlib
import pathlib
import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.table

from jworld.cameras import actions, plausibility, poses
from jworld.data import records
from jworld.data.records import shards, text_store
from jworld.encoders import glyph, qwen, siglip
from jworld.systems import matching
from jworld.systems.worldplay import matching_recipe, published_files
from jworld.utils import arguments, outputs
from jworld.utils.errors import UserError, exit_on_user_error

COMMAND = "python -m jworld.systems.worldplay.import_data"
# Sizes of HunyuanVideo-1.5's autoencoder, which the published latents come from.
CHANNELS, SPATIAL_RATIO = 32, 16


@dataclasses.dataclass(frozen=True)
class Published:
    """The clips of an index, the negative prompt, and the sizes of the first valid clip, which all others must have."""

    index: pathlib.Path
    entries: list[published_files.Entry]
    negative: published_files.Prompt
    sizes: published_files.Sizes | None
    min_frames: int
    channels: int

    def load(self, item: int) -> published_files.Clip:
        """Read and check one clip; a `UserError` describes a problem."""
        entry = self.entries[item]
        clip = published_files.read_clip(entry, channels=self.channels, min_frames=self.min_frames)
        if self.sizes is not None and clip.sizes != self.sizes:
            raise UserError(
                f"{entry.latent} has {clip.sizes}, expected {self.sizes} like the first clip of the index: import "
                "clips of another size as a separate data set"
            )
        return clip


def open_published(
    index: str | pathlib.Path,
    negative_prompt: str | pathlib.Path,
    negative_glyph: str | pathlib.Path,
    *,
    min_frames: int,
    channels: int,
    skip_errors: bool,
) -> Published:
    """Read index and negative prompt; the first clip, or the first valid one with `skip_errors`, sets the sizes."""
    entries = published_files.read_index(index)
    negative = published_files.read_negative(negative_prompt, negative_glyph)
    sizes = None
    for entry in entries:
        try:
            sizes = published_files.read_clip(entry, channels=channels, min_frames=min_frames).sizes
            break
        except UserError:
            if not skip_errors:
                raise
    widths = (negative.text_states.shape[1], negative.glyph_states.shape[1])
    if sizes is not None and widths != (sizes.text, sizes.glyph):
        raise UserError(
            f"{negative_prompt} and {negative_glyph} hold states of widths {widths}, expected "
            f"{(sizes.text, sizes.glyph)} like the prompts of the clips: give the negative prompt of the same encoders"
        )
    return Published(pathlib.Path(index), entries, negative, sizes, min_frames, channels)


def validate(
    published: Published,
    console: rich.console.Console | None = None,
    motions: plausibility.MotionStatistics | None = None,
) -> list[str]:
    """Check every clip without writing; return one sentence per bad clip. Good ones are added to `motions`."""
    bad, motions = [], motions or plausibility.MotionStatistics()
    with shards.meter("checking", len(published.entries), console=console) as advance:
        for item, entry in enumerate(published.entries):
            try:
                clip = published.load(item)
            except UserError as error:
                bad.append(f"{entry.name}: {error}")
                advance(0)
            else:
                motions.add(entry.name, clip.w2c, clip.action, recorded=clip.recorded)
                advance(clip.latent.nbytes)
    return bad


def import_worldplay(
    published: Published,
    output: str | pathlib.Path,
    *,
    val_count: int = 0,
    items_per_shard: int = 32,
    fps: float = 24.0,
    skip_errors: bool = False,
    console: rich.console.Console | None = None,
    motions: plausibility.MotionStatistics | None = None,
) -> shards.Summary:
    """Write the records of all clips to `output`, or resume an interrupted call.

    Args:
      published: the clips.
      output: folder for the records.
      val_count: number of held-out clips, spread evenly over the index.
      items_per_shard: clips per file.
      fps: frame rate of the videos, in Hz.
      skip_errors: leave bad clips out and list them in report.json.
      console: console for the progress bar.
      motions: statistics to which the clips are added that this call writes.

    Raises:
      UserError: a clip is bad, or all clips are with `skip_errors`; `output` is not writable.
    """
    if published.sizes is None:
        raise UserError(f"index {published.index}: none of its clips can be used: see the reasons with --validate")
    request = {
        "command": COMMAND,
        "index_sha256": hashlib.sha256(published.index.read_bytes()).hexdigest(),
        "negative_prompt": published.negative.key,
        "min_frames": published.min_frames,
        "sizes": dataclasses.asdict(published.sizes),
        "val_count": val_count,
        "items_per_shard": items_per_shard,
        "fps": fps,
    }
    plan = shards.plan(split_items(len(published.entries), val_count), items_per_shard=items_per_shard)
    try:
        folder = shards.Output(output, request)
        if not folder.complete:
            results = _write(
                published,
                folder,
                plan,
                skip_errors=skip_errors,
                console=console,
                motions=motions or plausibility.MotionStatistics(),
            )
            recorded = any(entry.action is not None for entry in published.entries)
            folder.finish(plan, results, _manifest(published.sizes, fps, recorded=recorded))
    except OSError as error:
        raise UserError(
            f"{output} could not be written ({error}): free some space and run the command again, or give another "
            "--output"
        ) from error
    return shards.Summary.read(output)


def split_items(items: int, val_count: int) -> dict[str, list[int]]:
    """Return the items of the training and the held-out split; held-out items are spread evenly."""
    val = [i for i in range(items) if (i + 1) * val_count // items > i * val_count // items]
    return {"train": sorted(set(range(items)) - set(val)), "val": val}


def _write(
    published: Published,
    output: shards.Output,
    plan: list[shards.Shard],
    *,
    skip_errors: bool,
    console: rich.console.Console | None,
    motions: plausibility.MotionStatistics,
) -> list[shards.Result]:
    results = output.finished(plan)
    # Rows of the text store in the order of first use; row 0 is the negative prompt.
    rows = {key: row for row, key in enumerate(key for result in results for key in result.prompts)}

    def row(writer: shards.ShardWriter, prompt: published_files.Prompt) -> int:
        key = prompt.key
        if key not in rows:
            writer.write_prompt(key, text_store.prompt_record(prompt.text_states, prompt.glyph_states))
            rows[key] = len(rows)
        return rows[key]

    def store(writer: shards.ShardWriter, item: int, clip: published_files.Clip) -> None:
        row(writer, published.negative)
        motions.add(published.entries[item].name, clip.w2c, clip.action, recorded=clip.recorded)
        writer.write(published.entries[item].name, make_record(clip, prompt=row(writer, clip.prompt)))

    return shards.write(
        output,
        plan,
        results,
        load=published.load,
        store=store,
        name=lambda item: published.entries[item].name,
        skip_errors=skip_errors,
        title="importing",
        console=console,
    )


def make_record(clip: published_files.Clip, *, prompt: int) -> records.Record:
    """Return the training record of a clip whose text is row `prompt` of the text store."""
    return {
        "latent": clip.latent,
        "image_cond": clip.image_cond,
        "w2c": clip.w2c.astype(np.float32),
        "intrinsics": poses.normalize_intrinsics(clip.intrinsics).astype(np.float32),
        "action": clip.action,
        "vision_states": clip.vision_states,
        "prompt": np.array(prompt, np.int32),
    }


def _manifest(sizes: published_files.Sizes, fps: float, *, recorded: bool) -> dict[str, Any]:
    height, width, channels = sizes.latent
    return {
        "source": "worldplay",
        "arrays": records.make_arrays(sizes.latent, cameras=True, action=True, vision=sizes.vision, prompt=True),
        "autoencoder": {
            "family": "hunyuan15",
            "normalised": True,
            "channels": channels,
            "spatial_ratio": SPATIAL_RATIO,
            "temporal_ratio": actions.FRAMES_PER_LATENT,
        },
        "latent_shape": list(sizes.latent),
        "temporal_ratio": actions.FRAMES_PER_LATENT,
        "fps": fps,
        "image_size": [width * SPATIAL_RATIO, height * SPATIAL_RATIO],
        "camera_convention": records.CAMERA_CONVENTION,
        "action_labels": "recorded" if recorded else "cameras",
        "text_encoder": {"family": qwen.FAMILY, "dim": sizes.text},
        "glyph_encoder": {"family": glyph.FAMILY, "dim": sizes.glyph},
        "vision_encoder": {"family": siglip.FAMILY, "tokens": sizes.vision[0], "dim": sizes.vision[1]},
    }


def _parser() -> arguments.Parser:
    parser = arguments.Parser(
        COMMAND,
        "Convert WorldPlay's published training data (an index of .pt latents, pose and action files) to records. The "
        'same command again resumes an interrupted run. Needs PyTorch: pip install "jworld[torch]".',
    )
    add = parser.add_argument
    add("--index", required=True, metavar="FILE", help="index.json, a list of {latent_path, pose_path, action_path}")
    add("--negative-prompt", required=True, metavar="FILE", help="encoded negative prompt, hunyuan_neg_prompt.pt")
    add("--negative-glyph", required=True, metavar="FILE", help="its glyph states, hunyuan_neg_byt5_prompt.pt")
    add("--output", metavar="DIR", help="folder for the records (required without --validate)")
    add("--validate", action="store_true", help="check every clip, list all bad ones, and write nothing")
    held_out = parser.add_mutually_exclusive_group()
    held_out.add_argument(
        "--val-count", type=int, default=0, help="number of clips to hold out, spread evenly over the index"
    )
    held_out.add_argument("--val-fraction", type=float, help="share of clips to hold out (default: none)")
    add("--items-per-shard", type=int, default=32, help="clips per file; a resumed run repeats at most one file")
    add("--fps", type=arguments.number(1e-3, 1000), default=24.0, help="frame rate of the videos, in Hz")
    add("--min-frames", type=int, default=24, help="fewest latent frames of a clip: the model's window")
    add(
        "--on-error",
        choices=("stop", "skip"),
        default="stop",
        help="at a bad clip: stop, or leave it out and list it in report.json, with exit code 2 at the end",
    )
    for option in ("--output", "--val-count", "--val-fraction", "--items-per-shard", "--on-error"):
        parser.not_with(option, "--validate")
    return parser


def _check(parser: arguments.Parser, options: argparse.Namespace) -> None:
    if not options.validate and not options.output:
        parser.error("--output DIR is missing (or --validate, which writes nothing)")
    for option in ("items_per_shard", "min_frames"):
        if getattr(options, option) <= 0:
            parser.error(f"--{option.replace('_', '-')} is {getattr(options, option)}, expected more than 0")
    if options.val_fraction is not None and not 0 <= options.val_fraction < 1:
        parser.error(f"--val-fraction is {options.val_fraction}, expected a share from 0 to below 1")


def _print_lines(console: rich.console.Console, lines: Iterable[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False, emoji=False)


def _print_validation(published: Published, console: rich.console.Console) -> None:
    motions = plausibility.MotionStatistics()
    bad = validate(published, console, motions)
    if motions.rows():
        console.print(_motions_table(motions))
    warnings = motions.warnings()
    _print_lines(console, [*(f"warning: {warning}" for warning in warnings), *bad])
    if bad:
        console.print(f"{len(bad)} of {len(published.entries)} clips are bad", highlight=False)
        sys.exit(2)
    are = f"can be imported, with {len(warnings)} warnings" if warnings else "are good"
    console.print(f"all {len(published.entries)} clips {are}", highlight=False)


def _motions_table(motions: plausibility.MotionStatistics) -> rich.table.Table:
    table = rich.table.Table("action", title="actions, and the cameras' motion per latent")
    for column in ("latents", "share", "median step", "median turn"):
        table.add_column(column, justify="right")
    for row in motions.rows():
        table.add_row(row.action, f"{row.latents:,}", f"{row.share:.1%}", f"{row.step:.3g}", f"{row.turn:.2f}°")
    return table


def _print_summary(
    summary: shards.Summary, published: Published, warnings: Sequence[str], console: rich.console.Console
) -> None:
    clips = ", ".join(f"{count} {split}" for split, count in summary.clips.items())
    console.print(
        f"{summary.directory}: {clips} clips, {summary.amount}",
        soft_wrap=True,
        highlight=False,
    )
    _print_lines(console, [f"warning: {warning}" for warning in warnings])
    if not summary.clips["val"]:
        _print_lines(console, ["note: nothing is held out, so the trained model cannot be measured: see --val-count"])
    if published.sizes is not None:
        flags = matching_recipe.train_command(summary.manifest, summary.directory)
        assert flags is not None
        notes = matching.notes(flags, summary.manifest)
        command = shlex.join(["python", "-m", "jworld.train", *flags])
        _print_lines(console, [*(f"note: {note}" for note in notes), f"next: {command}"])
    if summary.skipped:
        report = summary.directory / shards.REPORT
        console.print(f"left out {len(summary.skipped)} bad clips, see {report}", soft_wrap=True, highlight=False)
        sys.exit(2)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    options = parser.parse(argv)
    _check(parser, options)
    if not options.validate:
        outputs.check_folder("--output", pathlib.Path(options.output))
    console = rich.console.Console()
    published = open_published(
        options.index,
        options.negative_prompt,
        options.negative_glyph,
        min_frames=options.min_frames,
        channels=CHANNELS,
        skip_errors=options.validate or options.on_error == "skip",
    )
    if options.validate:
        _print_validation(published, console)
        return
    items, val_count = len(published.entries), options.val_count
    if options.val_fraction is not None:
        val_count = round(options.val_fraction * items)
    if not 0 <= val_count < items:
        raise UserError(f"--val-count is {val_count}, expected 0 to {items - 1}: the index has {items} clips")
    motions = plausibility.MotionStatistics()
    summary = import_worldplay(
        published,
        options.output,
        val_count=val_count,
        items_per_shard=options.items_per_shard,
        fps=options.fps,
        skip_errors=options.on_error == "skip",
        console=console,
        motions=motions,
    )
    _print_summary(summary, published, motions.warnings(), console)


if __name__ == "__main__":
    main()
