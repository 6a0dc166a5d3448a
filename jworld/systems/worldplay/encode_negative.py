"""python -m jworld.systems.worldplay.encode_negative: write the two files of the negative prompt that WorldPlay reads.

`jworld.systems.worldplay.import_data` and HY-WorldPlay's trainer need them; the published data has them too. Source:
HY-WorldPlay, `ar_camera_hunyuan_w_mem_dataset.py`.
"""

import pathlib
import shlex
from collections.abc import Sequence

import numpy as np
import rich.console

from jworld.encoders import choices, glyph, qwen, registry, torch_models
from jworld.systems.worldplay import import_data
from jworld.utils import arguments, files, outputs
from jworld.utils.errors import UserError, exit_on_user_error

#: File names of the published data.
PROMPT_FILE, GLYPH_FILE = "hunyuan_neg_prompt.pt", "hunyuan_neg_byt5_prompt.pt"
#: Width of the published glyph states.
GLYPH_DIM = 1472


def padded(states: np.ndarray, tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Pad states [S, D] with zeros to [1, tokens, D], and return them with their mask int64 [1, tokens]."""
    kept = states[:tokens]
    rows = np.pad(kept, ((0, tokens - len(kept)), (0, 0)))
    return rows[None], (np.arange(tokens) < len(kept)).astype(np.int64)[None]


def write(text: np.ndarray, glyphs: np.ndarray, output: pathlib.Path) -> list[pathlib.Path]:
    """Write both files into the folder `output` and return their paths.

    Args:
      text: states of the negative prompt, [S, Dt]; stored as float16.
      glyphs: states of its quoted texts, [G, Dg]; stored as float32.
      output: folder, which is made if it is absent; its files of these names are replaced.

    Raises:
      UserError: PyTorch is not installed, or the files cannot be written.
    """
    torch = torch_models.require("torch")
    embeds, mask = padded(text.astype(np.float16), qwen.TOKENS)
    states, glyph_mask = padded(glyphs.astype(np.float32), glyph.TOKENS)
    contents = {
        PROMPT_FILE: {"negative_prompt_embeds": embeds, "negative_prompt_mask": mask},
        GLYPH_FILE: {"byt5_text_states": states, "byt5_text_mask": glyph_mask},
    }
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, arrays in contents.items():
            with files.replacing(output / name) as temporary:
                torch.save({key: torch.from_numpy(array) for key, array in arrays.items()}, temporary)
    except OSError as error:
        raise UserError(f"{output} could not be written ({error}): give another --output") from error
    return [output / name for name in contents]


def _parser() -> arguments.Parser:
    parser = arguments.Parser(
        "python -m jworld.systems.worldplay.encode_negative",
        f"Encode a negative prompt into the files {PROMPT_FILE} and {GLYPH_FILE}, which the import of WorldPlay's data "
        "needs. The published model's negative prompt is empty.",
    )
    add = parser.add_argument
    add("--prompt", default="", help="the negative prompt (default: the empty text, as published)")
    add("--text-encoder", required=True, metavar="SPEC", help=f"{qwen.FAMILY}:FOLDER, or stored:FILE")
    add(
        "--glyph-encoder",
        default=f"{choices.NONE}:{GLYPH_DIM}",
        metavar="SPEC",
        help=f"{glyph.FAMILY}:FOLDER for a prompt with quoted text, or none:WIDTH for one without",
    )
    add(
        "--output", required=True, type=pathlib.Path, metavar="DIR", help="folder for the two files, which are replaced"
    )
    torch_models.add_arguments(parser, "the encoders", dtype="as published")
    return parser


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    options = _parser().parse(argv)
    outputs.check_folder("--output", options.output)
    run_with = registry.Options(dtype=options.encoder_dtype, device=options.encoder_device)
    registry.check_options(run_with, [spec.partition(":")[0] for spec in (options.text_encoder, options.glyph_encoder)])
    console = rich.console.Console(soft_wrap=True, highlight=False)
    encoder = choices.load(choices.TEXT, options.text_encoder, run_with)
    glyphs = choices.load(choices.GLYPH, options.glyph_encoder, run_with)
    if encoder is None or glyphs is None:
        raise UserError(
            "an encoder is 'none', expected one with states: give --text-encoder, or --glyph-encoder none:1472"
        )
    prompt = options.prompt.strip()
    (text,) = encoder.encode([prompt])
    (drawn,) = glyphs.encode([prompt])
    if not len(text):
        raise UserError(f"--text-encoder {options.text_encoder} gives no states: name the encoder of the clips")
    paths = write(text, drawn, options.output)
    for path in paths:
        console.print(f"wrote {path}", markup=False, emoji=False)
    command = [*import_data.COMMAND.split(), "--index", "index.json"]
    command += ["--negative-prompt", str(paths[0]), "--negative-glyph", str(paths[1]), "--validate"]
    console.print(f"next: {shlex.join(command)}", markup=False, emoji=False)


if __name__ == "__main__":
    main()
