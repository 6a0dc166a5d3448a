"""python -m jworld.precompute.encode_text: prompts -> a file of text states, for machines without the text encoder.

`precompute --text-embeddings FILE` and `--text-encoder stored:FILE` of every command take the file for the encoder.
"""

import argparse
import pathlib
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import rich.console
import rich.progress

from jworld.data.inputs import items
from jworld.encoders import registry, stored, torch_models
from jworld.utils.errors import UserError, exit_on_user_error

_BATCH = 8


def collect(prompts: Sequence[str], directory: pathlib.Path | None) -> list[str]:
    """Each prompt once: those given and those of DIR/metas/*.txt, and the empty one.

    Raises:
      UserError: there are none.
    """
    found = list(prompts)
    if directory is not None:
        files = sorted((directory / "metas").glob("*.txt"))
        if not files:
            raise UserError(f"{directory / 'metas'} holds no *.txt, expected a prompt in each: check --input")
        found += [items.read_text(file) or "" for file in files]
    if not found:
        raise UserError("there is nothing to encode: give --prompt TEXT or --input DIR")
    return list(dict.fromkeys(["", *(prompt.strip() for prompt in found)]))


def encode(
    encoder: registry.TextEncoder,
    prompts: Sequence[str],
    output: pathlib.Path,
    *,
    console: rich.console.Console | None = None,
) -> None:
    """Write the states of the prompts, bfloat16, at their true lengths; see `stored` for the file."""
    states: dict[str, np.ndarray] = {}
    starts = range(0, len(prompts), _BATCH)
    for start in rich.progress.track(starts, "encoding", console=console, disable=console is None):
        batch = prompts[start : start + _BATCH]
        rows = [array.astype(ml_dtypes.bfloat16) for array in encoder.encode(batch)]
        states |= dict(zip(batch, rows, strict=True))
    stored.write_embeddings(output, encoder.family, states)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jworld.precompute.encode_text",
        description="Encode prompts into one safetensors file, which stands for the text encoder where that does not "
        "run. The empty prompt is always among them.",
    )
    add, kinds = parser.add_argument, ", ".join(registry.TEXT_KINDS)
    add("--text-encoder", required=True, metavar="SPEC", help=f"KIND:FOLDER or KIND:HUB-ID, KIND one of {kinds}")
    add("--prompt", action="append", default=[], metavar="TEXT", help="a prompt; may be repeated")
    add("--input", type=pathlib.Path, metavar="DIR", help="data set of Cosmos-Predict2, whose metas/*.txt are prompts")
    add("--output", required=True, type=pathlib.Path, metavar="FILE", help="file to write, which is replaced")
    add("--encoder-device", metavar="DEVICE", help="where the encoder runs (default: cuda where there is one)")
    add("--encoder-dtype", choices=torch_models.DTYPES, help="what it runs in (default: as the published system)")
    return parser


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    prompts = collect(arguments.prompt, arguments.input)
    options = registry.Options(dtype=arguments.encoder_dtype, device=arguments.encoder_device)
    console = rich.console.Console()
    encode(registry.load_text_encoder(arguments.text_encoder, options), prompts, arguments.output, console=console)
    console.print(f"wrote {arguments.output}: {len(prompts)} prompts", soft_wrap=True, highlight=False)
    console.print(
        f"next: give it to jworld.precompute as --text-embeddings {arguments.output}, or to jworld.generate as "
        f"--text-encoder stored:{arguments.output}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


if __name__ == "__main__":
    main()
