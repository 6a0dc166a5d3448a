"""python -m jworld.systems.cosmos.import_t5: pickled T5 embeddings of Cosmos-Predict2 -> a safetensors file.

For data sets with videos/X.mp4, metas/X.txt and t5_xxl/X.pickle. `python -m jworld.precompute --text-embeddings` takes
the file in place of a text encoder. Nothing in the pickles is run: only arrays are read, see
`jworld.systems.cosmos.t5_pickles`.
"""

import argparse
import pathlib
import shlex
from collections.abc import Sequence

import numpy as np
import rich.console
import rich.progress

from jworld.data.inputs import items
from jworld.encoders import stored, t5
from jworld.systems.cosmos import t5_pickles
from jworld.utils.errors import UserError, exit_on_user_error

FOLDER = "t5_xxl"


def import_embeddings(
    directory: pathlib.Path, output: pathlib.Path, *, console: rich.console.Console | None = None
) -> dict[str, np.ndarray]:
    """Write the embeddings of all captions to `output`; -> caption -> [tokens, width].

    An empty caption is a row of zeros, as the original trains without text on zeros, unless a pickle says otherwise.

    Raises:
      UserError: a pickle is no array, has no caption, or contradicts that of the same caption; `output` is not
        writable.
    """
    files = sorted((directory / FOLDER).glob("*.pickle"))
    if not files:
        raise UserError(f"{directory / FOLDER} has no *.pickle, expected one for every metas/X.txt: check --input")
    states: dict[str, np.ndarray] = {}
    origins: dict[str, pathlib.Path] = {}
    for file in rich.progress.track(files, "reading", console=console, disable=console is None):
        meta = directory / "metas" / f"{file.stem}.txt"
        caption = items.read_text(meta)
        if caption is None:
            raise UserError(
                f"{meta} is absent, expected the caption that {file} encodes: write it, or remove the latter"
            )
        caption, array = caption.strip(), t5_pickles.read(file)
        if caption not in states:
            states[caption], origins[caption] = array, file
        elif not np.array_equal(states[caption], array):
            raise UserError(f"{file} is not {origins[caption]}, but both encode {caption[:80]!r}: make them again")
    widths = {array.shape[1]: origins[caption] for caption, array in states.items()}
    if len(widths) > 1:
        found = " and ".join(f"{width} in {file}" for width, file in widths.items())
        raise UserError(f"the embeddings are of different widths, {found}: make them with one encoder")
    states.setdefault("", np.zeros((1, next(iter(widths))), np.float16))
    stored.write_embeddings(output, t5.FAMILY, states)
    return states


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jworld.systems.cosmos.import_t5",
        description="Write the T5 embeddings of a Cosmos-Predict2 data set (t5_xxl/X.pickle, of the captions "
        "metas/X.txt) to a safetensors file, for precompute --text-embeddings. Needed once; the pickles are never "
        "opened again.",
    )
    parser.add_argument(
        "--input", required=True, type=pathlib.Path, metavar="DIR", help=f"data set with metas/ and {FOLDER}/"
    )
    parser.add_argument(
        "--output",
        type=pathlib.Path,
        metavar="FILE",
        help=f"file to write, which is replaced (default: {FOLDER}.safetensors in the data set)",
    )
    return parser


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    output = arguments.output or arguments.input / f"{FOLDER}.safetensors"
    console = rich.console.Console()
    states = import_embeddings(arguments.input, output, console=console)
    width = next(iter(states.values())).shape[1]
    console.print(f"wrote {output}: {len(states)} captions, {width} wide", soft_wrap=True, highlight=False)
    command = ["python", "-m", "jworld.precompute", "--format", "cosmos", "--input", str(arguments.input)]
    command += ["--text-embeddings", str(output), "--help"]
    console.print(f"next: {shlex.join(command)}", soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    main()
