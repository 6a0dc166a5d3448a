"""python -m jworld.systems.cosmos.import_t5: convert pickled T5 embeddings of Cosmos-Predict2 to a safetensors file.

For data sets with videos/X.mp4, metas/X.txt and t5_xxl/X.pickle, or with a folder per camera in each of the three,
where the files may also be named X.pkl. `python -m jworld.precompute --text-embeddings` reads
the file instead of running a text encoder. Nothing in the pickles is executed: see `jworld.systems.cosmos.t5_pickles`.
"""

import pathlib
import shlex
from collections.abc import Sequence

import numpy as np
import rich.console
import rich.progress

from jworld.data.inputs import items
from jworld.encoders import stored, t5
from jworld.systems.cosmos import t5_pickles
from jworld.utils import arguments, outputs
from jworld.utils.errors import UserError, exit_on_user_error

FOLDER = "t5_xxl"


def import_embeddings(
    directory: pathlib.Path, output: pathlib.Path, *, console: rich.console.Console | None = None
) -> dict[str, np.ndarray]:
    """Write the embeddings of all captions to `output`.

    An empty caption without a pickle becomes a row of zeros, because the original replaces dropped text by zeros.

    Returns:
      Caption -> embedding [tokens, width].

    Raises:
      UserError: a pickle is not an array, has no caption, or differs from another one with the same caption; `output`
        is not writable.
    """
    folder = directory / FOLDER
    files = sorted(file for pattern in ("*.pickle", "*/*.pickle", "*/*.pkl") for file in folder.glob(pattern))
    if not files:
        raise UserError(f"{directory / FOLDER} has no *.pickle, expected one for every metas/X.txt: check --input")
    states: dict[str, np.ndarray] = {}
    origins: dict[str, pathlib.Path] = {}
    for file in rich.progress.track(files, "reading", console=console, disable=console is None):
        meta = directory / "metas" / file.relative_to(folder).with_suffix(".txt")
        caption = items.read_text(meta)
        if caption is None:
            raise UserError(
                f"{meta} is absent, expected the caption of {file}: write the caption, or remove the pickle"
            )
        caption, array = caption.strip(), t5_pickles.read(file)
        if caption not in states:
            states[caption], origins[caption] = array, file
        elif not np.array_equal(states[caption], array):
            raise UserError(f"{file} and {origins[caption]} differ, but both encode {caption[:80]!r}: make both again")
    widths = {array.shape[1]: origins[caption] for caption, array in states.items()}
    if len(widths) > 1:
        found = " and ".join(f"{width} in {file}" for width, file in widths.items())
        raise UserError(f"the embeddings have different widths, {found}: make them with one encoder")
    states.setdefault("", np.zeros((1, next(iter(widths))), np.float16))
    stored.write_embeddings(output, t5.FAMILY, states)
    return states


def _parser() -> arguments.Parser:
    parser = arguments.Parser(
        "python -m jworld.systems.cosmos.import_t5",
        "Convert the T5 embeddings of a Cosmos-Predict2 data set (t5_xxl/X.pickle for the caption metas/X.txt) to one "
        "safetensors file for precompute --text-embeddings. The pickles are not needed afterwards.",
    )
    add = parser.add_argument
    add("--input", required=True, type=pathlib.Path, metavar="DIR", help=f"data set, with metas/ and {FOLDER}/")
    add(
        "--output",
        type=pathlib.Path,
        metavar="FILE",
        help=f"file to write; an existing one is replaced (default: {FOLDER}.safetensors in the data set)",
    )
    return parser


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    options = _parser().parse(argv)
    output = options.output or options.input / f"{FOLDER}.safetensors"
    outputs.check_file("--output", output)
    console = rich.console.Console()
    states = import_embeddings(options.input, output, console=console)
    width = next(iter(states.values())).shape[1]
    console.print(f"wrote {output}: {len(states)} captions, {width} wide", soft_wrap=True, highlight=False)
    command = ["python", "-m", "jworld.precompute", "--format", "cosmos", "--input", str(options.input)]
    command += ["--text-embeddings", str(output), "--help"]
    console.print(f"next: {shlex.join(command)}", soft_wrap=True, highlight=False, markup=False)


if __name__ == "__main__":
    main()
