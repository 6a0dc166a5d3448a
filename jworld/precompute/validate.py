"""python -m jworld.precompute.validate DIR: is a set of records whole and sound, and what does it hold?

Reads every record and every encoded prompt once, lists all that are bad, and prints statistics of the others. With
`--plot` it also draws them. Of this room only the program knows autoencoders: the checks and pictures that it puts
together do not.
"""

import argparse
import dataclasses
import pathlib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.console

from jworld.data import records
from jworld.data.records import checks
from jworld.encoders import autoencoders, model_encoders
from jworld.precompute import plots
from jworld.utils import files, indices
from jworld.utils.errors import UserError, exit_on_user_error

COMMAND = "python -m jworld.precompute.validate"


def validate(
    directory: str | pathlib.Path,
    *,
    recorded_labels: bool = False,
    keep: int = 0,
    console: rich.console.Console | None = None,
) -> checks.Result:
    """`checks.validate`, which also finds an autoencoder that is there and not the one of the manifest."""

    def check_autoencoder(manifest: dict[str, Any]) -> None:
        if not model_encoders.find_autoencoder_problem(directory, manifest):
            model_encoders.open_autoencoder(directory, manifest)

    return checks.validate(
        directory,
        recorded_labels=recorded_labels,
        keep=keep,
        check_autoencoder=check_autoencoder,
        console=console,
    )


def _decode(
    directory: pathlib.Path, manifest: Mapping[str, Any], clips: Mapping[str, records.Record]
) -> dict[str, dict[int, np.ndarray]]:
    """Some frames of some clips by title and caption; none where the autoencoder is not at hand."""
    shown = [(title, record) for title, record in clips.items() if "latent" in record]
    if not shown or model_encoders.find_autoencoder_problem(directory, manifest):
        return {}
    chosen = indices.evenly(len(shown), plots.THUMBNAIL_CLIPS)
    autoencoder = model_encoders.open_autoencoder(directory, manifest)
    videos = {}
    for title, record in (shown[i] for i in chosen):
        caption = manifest["prompts"][int(record["prompt"])] if "prompt" in record else ""
        caption = textwrap.shorten(caption, 120, placeholder=" ...")
        videos[f"{title}: {caption}" if caption else title] = decode_some(autoencoder, record["latent"])
    return videos


def decode_some(autoencoder: autoencoders.Autoencoder, latents: np.ndarray) -> dict[int, np.ndarray]:
    """Some frames uint8 [H, W, 3] of a clip [F, H', W', C], by their number; decoded as a stream, which needs little
    memory however long the clip is."""
    stream, frames, end = autoencoder.stream(), {}, 0
    shown = set(indices.evenly(len(latents), plots.FRAMES))
    for i in range(len(latents)):
        video = stream.step(latents[i : i + 1].astype(np.float32))
        end += len(video)
        if i in shown:
            frames[end - 1] = video[-1]
    return frames


def _write_json(path: pathlib.Path, directory: pathlib.Path, result: checks.Result) -> None:
    content = {
        "directory": str(directory),
        "good": not result.findings,
        "findings": [dataclasses.asdict(finding) for finding in result.findings],
        "notes": result.notes,
        "statistics": result.statistics.numbers(),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, content)
    except OSError as error:
        raise UserError(f"{path} could not be written ({error}): give another --json") from error


def _print(result: checks.Result, console: rich.console.Console) -> None:
    for table in result.statistics.tables():
        console.print(table)
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True, markup=False)
    for finding in result.findings:
        console.print(f"bad: {finding}", soft_wrap=True, markup=False)


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Check every record and encoded prompt of a data set, list what is bad, and print statistics. Ends "
        "with exit code 2 if anything is bad.",
    )
    parser.add_argument("directory", metavar="DIR", help="folder of records, as python -m jworld.precompute writes it")
    parser.add_argument("--plot", metavar="OUT_DIR", help="also draw camera paths, actions, latents and decoded frames")
    parser.add_argument("--json", metavar="FILE", help="also write what was found and the statistics to this file")
    parser.add_argument(
        "--recorded-labels",
        action="store_true",
        help="action labels were recorded and may differ from those of the cameras",
    )
    arguments = parser.parse_args(argv)
    directory = pathlib.Path(arguments.directory)
    console = rich.console.Console(highlight=False)
    result = validate(
        directory,
        recorded_labels=arguments.recorded_labels,
        keep=plots.CLIPS if arguments.plot else 0,
        console=console,
    )
    _print(result, console)
    if arguments.json:
        _write_json(pathlib.Path(arguments.json), directory, result)
        console.print(f"wrote {arguments.json}", soft_wrap=True)
    if arguments.plot:
        videos = _decode(directory, result.manifest, result.clips)
        pictures = plots.draw(result.statistics, result.clips, videos)
        for path in plots.write(pathlib.Path(arguments.plot), pictures):
            console.print(f"wrote {path}", soft_wrap=True)
        if plots.THUMBNAILS not in pictures:
            console.print("no decoded frames: jworld has no decoder for these latents", soft_wrap=True)
    whole = f"{result.records} records and {result.prompts} prompts"
    if result.findings:
        places = {(finding.file, finding.record) for finding in result.findings}
        raise UserError(f"{directory}: {len(places)} bad among {whole}, listed above: make the set again")
    console.print(f"all {whole} are good", soft_wrap=True)


if __name__ == "__main__":
    main()
