"""The command `python -m jworld.precompute.encode_text`: encodes prompts for machines without the text encoder.

`precompute --text-embeddings FILE` and `--text-encoder stored:FILE` of every command use the file as the encoder.
"""

import pathlib
import shlex
from collections.abc import Sequence

import ml_dtypes
import numpy as np
import rich.console
import rich.progress

from jworld.data.inputs import items
from jworld.encoders import registry, stored, torch_models
from jworld.utils import arguments, outputs
from jworld.utils.errors import UserError, exit_on_user_error

_BATCH = 8


def collect(prompts: Sequence[str], directory: pathlib.Path | None) -> list[str]:
    """Return distinct prompts: the empty one, those in `prompts`, and those of DIR/metas/*.txt.

    Raises:
      UserError: there is no prompt.
    """
    found = list(prompts)
    if directory is not None:
        files = sorted((directory / "metas").glob("*.txt"))
        if not files:
            raise UserError(f"{directory / 'metas'} holds no *.txt, expected one prompt per file: correct --input")
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
    """Write the states of the prompts, bfloat16, at their true lengths, to a file that `stored` describes."""
    states: dict[str, np.ndarray] = {}
    starts = range(0, len(prompts), _BATCH)
    for start in rich.progress.track(starts, "encoding", console=console, disable=console is None):
        batch = prompts[start : start + _BATCH]
        rows = [array.astype(ml_dtypes.bfloat16) for array in encoder.encode(batch)]
        states |= dict(zip(batch, rows, strict=True))
    stored.write_embeddings(output, encoder.family, states)


def _parser() -> arguments.Parser:
    parser = arguments.Parser(
        "python -m jworld.precompute.encode_text",
        "Encode prompts into one safetensors file, which replaces the text encoder on machines that cannot run it. The "
        "empty prompt is always among them.",
    )
    add, kinds = parser.add_argument, ", ".join(registry.TEXT_KINDS)
    add("--text-encoder", required=True, metavar="SPEC", help=f"KIND:FOLDER or KIND:HUB-ID; KIND is one of {kinds}")
    add("--prompt", action="append", default=[], help="a prompt; may be repeated")
    add("--input", type=pathlib.Path, metavar="DIR", help="data set whose metas/*.txt are prompts (default: none)")
    add("--output", required=True, type=pathlib.Path, metavar="FILE", help="file to write, which is replaced")
    torch_models.add_arguments(parser, "the encoder", dtype="as published")
    return parser


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = _parser().parse(argv)
    outputs.check_file("--output", options.output)
    prompts = collect(options.prompt, options.input)
    run_with = registry.Options(dtype=options.encoder_dtype, device=options.encoder_device)
    registry.check_options(run_with, [options.text_encoder.partition(":")[0]])
    console = rich.console.Console()
    encode(registry.load_text_encoder(options.text_encoder, run_with), prompts, options.output, console=console)
    console.print(f"wrote {options.output}: {len(prompts)} prompts", soft_wrap=True, highlight=False)
    file, spec = shlex.quote(str(options.output)), shlex.quote(f"{stored.KIND}:{options.output}")
    console.print(
        f"next: use it with jworld.precompute as --text-embeddings {file}, or with jworld.generate as "
        f"--text-encoder {spec}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


if __name__ == "__main__":
    main()
