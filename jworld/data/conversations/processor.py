"""Gemma's image processor: checked against the pixels that the model is trained on, and written for other programs."""

import json
import pathlib
from typing import Any

import einops
import numpy as np
import PIL.Image

from jworld.data.conversations import chat, image_files
from jworld.utils import pretrained
from jworld.utils.errors import UserError

_CLASS = "Gemma3Processor"
_TOKENS = {"image_token": chat.IMAGE, "boi_token": chat.START_OF_IMAGE, "eoi_token": chat.END_OF_IMAGE}


def check(folder: pathlib.Path, *, image_size: int) -> None:
    """Check that the image processor in a folder, if there is one, makes the pixels that the model reads.

    Raises:
      UserError: it cannot be read, or makes others; the message names the file.
    """
    path = pretrained.find_image_processor(folder)
    if path is None:
        return
    processor = pretrained.load_image_processor(folder, size=image_size)
    # Wide, so that crops of wide images show as well.
    image = np.random.default_rng(0).integers(0, 256, (image_size + 1, 3 * image_size, 3), np.uint8)
    theirs = pretrained.image_values(processor, image[None])
    ours = image_files.resized(PIL.Image.fromarray(image), image_size).astype(np.float32) / 127.5 - 1
    if len(theirs) != 1 or not np.allclose(theirs[0], einops.rearrange(ours, "h w c -> c h w"), atol=1e-5):
        raise UserError(
            f"{path} prepares images in another way than the model is trained with, expected a bilinear resize to "
            f"{image_size}x{image_size} pixels (resample 2, no pan and scan) and values in -1..1 (mean and standard "
            "deviation 0.5): correct the file"
        )


def files(folder: pathlib.Path, *, image_size: int, image_tokens: int) -> dict[str, str]:
    """Return the files that a folder with a tokenizer.json lacks for transformers to open it as Gemma's processor.

    They are in the form that both version 4 and version 5 read. A folder that has an image processor, such as that of a
    published Gemma, is left as it is.

    Returns:
      name -> content; empty if the folder has an image processor or no tokenizer.
    """
    if not (folder / chat.FILES[0]).is_file() or pretrained.find_image_processor(folder) is not None:
        return {}
    size = {"height": image_size, "width": image_size}
    with pretrained.quiet() as transformers:
        images = transformers.Gemma3ImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    # Not save_pretrained for the tokenizer: version 4 does not know the class that it writes.
    tokenizer: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "processor_class": _CLASS}
    tokenizer |= {"bos_token": chat.BOS, "eos_token": chat.EOS, "pad_token": chat.PAD}
    tokenizer |= {**_TOKENS, "extra_special_tokens": _TOKENS}
    path = folder / "tokenizer_config.json"
    if path.is_file():
        tokenizer |= json.loads(path.read_text(encoding="utf-8"))
    contents = {
        pretrained.PREPROCESSOR: images.to_dict(),
        pretrained.PROCESSOR: {"processor_class": _CLASS, "image_seq_length": image_tokens},
        path.name: tokenizer,
    }
    return {name: json.dumps(values, indent=2, sort_keys=True) + "\n" for name, values in contents.items()}
