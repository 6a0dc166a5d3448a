"""The command `python -m jworld.precompute.validate DIR`: validation and statistics of a set of records.

It reads every record and encoded prompt once, lists the bad ones, and prints statistics of the others. With `--plot` it
also draws them.
"""

import dataclasses
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.console

from jworld.cameras import plausibility
from jworld.data import records
from jworld.data.records import checks
from jworld.encoders import autoencoders, model_encoders
from jworld.models.autoencoders import linear
from jworld.precompute import plots
from jworld.utils import arguments, files, indices, outputs
from jworld.utils.errors import UserError, exit_on_user_error

COMMAND = "python -m jworld.precompute.validate"
#: Clips of each split whose cameras are compared with the action labels.
CAMERA_CLIPS = 100


def validate(
    directory: str | pathlib.Path,
    *,
    recorded_labels: bool = False,
    keep: int = 0,
    console: rich.console.Console | None = None,
) -> checks.Result:
    """Validate a set as `checks.validate` does, including its autoencoder if that is available."""

    def check_autoencoder(manifest: dict[str, Any]) -> None:
        problem = model_encoders.find_autoencoder_problem(directory, manifest)
        if not problem:
            model_encoders.open_autoencoder(directory, manifest)
        elif manifest["autoencoder"]["family"] == linear.FAMILY:
            # Its file belongs to the set; other autoencoders may be on another machine.
            raise UserError(problem)

    return checks.validate(
        directory,
        recorded_labels=recorded_labels,
        keep=keep,
        check_autoencoder=check_autoencoder,
        console=console,
    )


def camera_warnings(directory: pathlib.Path, manifest: Mapping[str, Any]) -> list[str]:
    """Return warnings about units, inverses and axes of the cameras, by up to `CAMERA_CLIPS` clips of each split."""
    if not {"w2c", "action"} <= manifest["arrays"].keys():
        return []
    motions = plausibility.MotionStatistics()
    for split, clips in manifest["clips"].items():
        if clips:
            source = records.RecordSource(directory, split)
            for i in indices.evenly(len(source), CAMERA_CLIPS):
                record = source[i]
                is_recorded = manifest.get("action_labels") == "recorded"
                motions.add(source.episodes[i], record["w2c"], record["action"], recorded=is_recorded)
    return motions.warnings()


def _decode(
    directory: pathlib.Path, manifest: Mapping[str, Any], clips: Mapping[str, records.Record]
) -> dict[str, dict[int, np.ndarray]]:
    """Decode some frames of some clips, by title and caption; {} if the autoencoder is not available."""
    shown = [(title, record) for title, record in clips.items() if "latent" in record]
    if not shown or model_encoders.find_autoencoder_problem(directory, manifest):
        return {}
    chosen = indices.evenly(len(shown), plots.THUMBNAIL_CLIPS)
    autoencoder = model_encoders.open_autoencoder(directory, manifest)
    videos = {}
    for title, record in (shown[i] for i in chosen):
        caption = manifest["prompts"][int(record["prompt"])] if "prompt" in record else ""
        caption = textwrap.shorten(caption, 120, placeholder=" ...")
        videos[f"{title}: {caption}" if caption else title] = decode_some(
            autoencoder, _of_first_camera(record["latent"])
        )
    return videos


def _of_first_camera(latents: np.ndarray) -> np.ndarray:
    """Return the latents [F, H, W, C] of the first camera."""
    first: np.ndarray = latents[0] if latents.ndim == 5 else latents
    return first


def decode_some(autoencoder: autoencoders.Autoencoder, latents: np.ndarray) -> dict[int, np.ndarray]:
    """Decode some frames uint8 [H, W, 3] of a clip [F, H', W', C], by frame number.

    The clip is decoded as a stream, so memory does not grow with its length.
    """
    stream, frames, end = autoencoder.stream(), {}, 0
    shown = set(indices.evenly(len(latents), plots.FRAMES))
    for i in range(len(latents)):
        video = stream.step(latents[i : i + 1].astype(np.float32))
        end += len(video)
        if i in shown:
            frames[end - 1] = video[-1]
    return frames


def _write_json(path: pathlib.Path, directory: pathlib.Path, result: checks.Result, warnings: Sequence[str]) -> None:
    content = {
        "directory": str(directory),
        "good": not result.findings,
        "findings": [dataclasses.asdict(finding) for finding in result.findings],
        "notes": result.notes,
        "warnings": list(warnings),
        "statistics": result.statistics.numbers(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, content)
    except OSError as error:
        raise UserError(f"{path} could not be written ({error}): give another --json") from error


def _print(result: checks.Result, warnings: Sequence[str], console: rich.console.Console) -> None:
    for table in result.statistics.tables():
        console.print(table)
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)
    for warning in warnings:
        console.print(f"warning: {warning}", soft_wrap=True, markup=False)
    for finding in result.findings:
        console.print(f"bad: {finding}", soft_wrap=True, markup=False)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = arguments.Parser(
        COMMAND,
        "Check every record and encoded prompt of a data set, list what is bad, and print statistics. The exit code is "
        "2 if anything is bad.",
    )
    add = parser.add_argument
    add("directory", metavar="DIR", help="folder of records, as python -m jworld.precompute writes it")
    add("--plot", metavar="DIR", help="also draw camera paths, actions, latents and decoded frames (default: none)")
    add("--json", metavar="FILE", help="also write findings and statistics to this file (default: none)")
    add("--recorded-labels", action="store_true", help="accept action labels that differ from those of the cameras")
    options = parser.parse(argv)
    directory = pathlib.Path(options.directory)
    console = rich.console.Console(highlight=False)
    if options.json:
        outputs.check_file("--json", pathlib.Path(options.json))
    if options.plot:
        outputs.check_folder("--plot", pathlib.Path(options.plot))
    result = validate(
        directory,
        recorded_labels=options.recorded_labels,
        keep=plots.CLIPS if options.plot else 0,
        console=console,
    )
    # A damaged file has no statistics.
    warnings = [] if result.findings else camera_warnings(directory, result.manifest)
    _print(result, warnings, console)
    if options.json:
        _write_json(pathlib.Path(options.json), directory, result, warnings)
        console.print(f"wrote {options.json}", soft_wrap=True)
    if options.plot:
        videos = _decode(directory, result.manifest, result.clips)
        figures = plots.draw(result.statistics, result.clips, videos)
        for path in plots.write(pathlib.Path(options.plot), figures):
            console.print(f"wrote {path}", soft_wrap=True)
        if plots.THUMBNAILS not in figures:
            console.print("no decoded frames: jworld has no decoder for these latents", soft_wrap=True)
    whole = f"{result.records} records and {result.prompts} prompts"
    if result.findings:
        locations = {(finding.file, finding.record) for finding in result.findings}
        raise UserError(f"{directory}: {len(locations)} bad among {whole}, listed above: make the set again")
    console.print(f"all {whole} are good", soft_wrap=True)


if __name__ == "__main__":
    main()
