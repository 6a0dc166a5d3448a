"""python -m jworld.systems.matrix.encode_controls: the driving tokens of The Matrix -> a file of control vectors.

`config.data.clip.control_states` names the file. Source: The Matrix, `stage2/training/control_encoder`.
"""

import argparse
import pathlib
from collections.abc import Sequence

import numpy as np
import rich.console
import safetensors.numpy

from jworld.cameras import driving
from jworld.encoders import registry, sources, torch_models
from jworld.systems.matrix import data
from jworld.utils import files, pretrained
from jworld.utils.errors import exit_on_user_error

_PARTS = ("text_encoder", "tokenizer")
_KIND = "clip"
#: What the published model was trained with.
PUBLISHED = "openai/clip-vit-large-patch14"


def encode(source: str, options: registry.Options) -> np.ndarray:
    """float32 [10, D]: the projected text features of `driving.SENTENCES`, not normalised.

    Args:
      source: folder or hub id of a CLIP model.
      options: how it runs.

    Raises:
      UserError: it is absent or no CLIP model, or the extra "torch" is not installed.
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
        states = model(**tokens).text_embeds.float().cpu().numpy()
    torch_models.check_finite([states], model.dtype)
    return states


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jworld.systems.matrix.encode_controls",
        description="Write the control vectors of The Matrix' driving tokens: CLIP's text features of a sentence for "
        "each, and of no control. The tiny recipes need no such file.",
    )
    add = parser.add_argument
    add("--encoder", default=PUBLISHED, metavar="FOLDER", help="folder or hub id of CLIP (default: %(default)s)")
    add("--output", required=True, type=pathlib.Path, metavar="FILE", help="file to write, which is replaced")
    add("--encoder-device", metavar="DEVICE", help="where the encoder runs (default: cuda where there is one)")
    add("--encoder-dtype", choices=torch_models.DTYPES, help="what it runs in (default: float32)")
    return parser


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    arguments = _parser().parse_args(argv)
    console = rich.console.Console(soft_wrap=True, highlight=False)
    options = registry.Options(dtype=arguments.encoder_dtype, device=arguments.encoder_device)
    with console.status("encoding the sentences"):
        states = encode(arguments.encoder, options)
    output: pathlib.Path = arguments.output
    output.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(output) as partial:
        safetensors.numpy.save_file({data.CONTROL_STATES: states}, partial)
    console.print(f"wrote {output}: {len(states)} vectors of width {states.shape[1]}")
    console.print(
        "next: python -m jworld.train --config=configs/matrix_control.py:2b "
        f"--config.data.clip.control_states={output} --config.model.control_dim={states.shape[1]}",
        markup=False,
    )


if __name__ == "__main__":
    main()
