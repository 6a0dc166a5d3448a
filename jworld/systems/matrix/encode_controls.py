"""python -m jworld.systems.matrix.encode_controls: encode the driving tokens of The Matrix into control vectors.

`config.data.clip.control_states` names the file. Source: The Matrix, `stage2/training/control_encoder`.
"""

import pathlib
import shlex
from collections.abc import Sequence

import numpy as np
import rich.console

from jworld.cameras import driving
from jworld.encoders import registry, sources, torch_models
from jworld.systems.matrix import data
from jworld.utils import arguments, outputs, pretrained, tensor_files
from jworld.utils.errors import exit_on_user_error

_PARTS = ("text_encoder", "tokenizer")
_KIND = "clip"
#: The encoder of the published model.
PUBLISHED = "openai/clip-vit-large-patch14"


def encode(source: str, options: registry.Options) -> np.ndarray:
    """Return the projected text features of `driving.SENTENCES`, float32 [10, D], not normalized.

    Args:
      source: folder or hub id of a CLIP model.
      options: device and dtype of the encoder.

    Raises:
      UserError: the model is absent or is not a CLIP model, or the extra "torch" is not installed.
    """
    torch = torch_models.require("torch")
    folder = sources.open_folder(source, parts=_PARTS)
    weights = sources.part(folder, "text_encoder")
    sources.check_model_type(weights, expected=("clip", "clip_text_model"), kind=_KIND)
    tokenizer = pretrained.load_tokenizer(sources.part(folder, "tokenizer"))
    device = torch_models.resolve_device(options)
    model = torch_models.load_model(
        "CLIPTextModelWithProjection",
        weights,
        dtype=options.dtype or "float32",
        device=device,
        unneeded=r"vision_model\.|visual_projection\.|logit_scale|.*position_ids",
    )
    sentences = [driving.SENTENCES[token] for token in (*driving.TOKENS, driving.NULL)]
    tokens = tokenizer(sentences, padding=True, return_tensors="pt").to(device)
    with torch.inference_mode():
        states: np.ndarray = model(**tokens).text_embeds.float().cpu().numpy()
    torch_models.check_finite([states], model.dtype)
    return states


def _parser() -> arguments.Parser:
    parser = arguments.Parser(
        "python -m jworld.systems.matrix.encode_controls",
        "Write the control vectors of The Matrix' driving tokens: CLIP's text features of a sentence for each token, "
        "and of no control. The tiny recipes do not need this file.",
    )
    add = parser.add_argument
    add("--encoder", default=PUBLISHED, metavar="SPEC", help="folder or hub id of CLIP")
    add("--output", required=True, type=pathlib.Path, metavar="FILE", help="file to write, which is replaced")
    torch_models.add_arguments(parser, "the encoder", dtype="float32")
    return parser


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    options = _parser().parse(argv)
    outputs.check_file("--output", options.output)
    console = rich.console.Console(soft_wrap=True, highlight=False)
    run_with = registry.Options(dtype=options.encoder_dtype, device=options.encoder_device)
    with console.status("encoding the sentences"):
        states = encode(options.encoder, run_with)
    output: pathlib.Path = options.output
    output.parent.mkdir(parents=True, exist_ok=True)
    tensor_files.save({data.CONTROL_STATES: states}, output)
    console.print(f"wrote {output}: {len(states)} vectors of width {states.shape[1]}")
    command = ["python", "-m", "jworld.train", "--config=configs/matrix_control.py:2b"]
    command += [f"--config.data.clip.control_states={output}", f"--config.model.control_dim={states.shape[1]}"]
    console.print(f"next: {shlex.join(command)}", markup=False, emoji=False)


if __name__ == "__main__":
    main()
