"""Gemma's image processor: checked against the pixels that the model is trained on, and written for other programs."""

import dataclasses
import json
import pathlib
from typing import Any

import einops
import numpy as np
import PIL.Image

from jworld.data.conversations import batches, chat, crops
from jworld.utils import files as file_readers
from jworld.utils import pretrained
from jworld.utils.errors import UserError

_CLASS = "Gemma3Processor"
_TOKENS = {"image_token": chat.IMAGE, "boi_token": chat.START_OF_IMAGE, "eoi_token": chat.END_OF_IMAGE}


def check(folder: pathlib.Path, clip: batches.ClipConfig) -> None:
    """Check that the image processor in a folder, if there is one, makes the pixels that the model reads.

    Crops of long images (pan and scan) are a choice of each call there: only a processor with crops must agree.

    Raises:
      UserError: it cannot be read, or makes others; the message names the file.
    """
    path = pretrained.find_image_processor(folder)
    if path is None:
        return
    size = clip.image_size
    processor = pretrained.load_image_processor(folder, size=size)
    if processor.do_pan_and_scan:
        _check_crops(path, processor, clip)
    # Wide, so that crops of wide images show as well.
    image = np.random.default_rng(0).integers(0, 256, (size + 1, 3 * size, 3), np.uint8)
    theirs = pretrained.image_values(processor, image[None])
    parts = batches.model_pixels([PIL.Image.fromarray(image)], dataclasses.replace(clip, images=1, world_size=0))
    ours = np.asarray(parts["pixel_values"])[: len(theirs)].astype(np.float32) / 127.5 - 1
    if not np.allclose(theirs, einops.rearrange(ours, "n h w c -> n c h w"), atol=1e-5):
        raise UserError(
            f"{path} prepares images in another way than the model is trained with, expected a bilinear resize to "
            f"{size}x{size} pixels (resample 2) and values in -1..1 (mean and standard deviation 0.5): correct the file"
        )


def _check_crops(path: pathlib.Path, processor: Any, clip: batches.ClipConfig) -> None:
    """Raise a `UserError` if a processor crops long images and the model's settings are others."""
    wanted = {f"pan_and_scan_{name}": value for name, value in dataclasses.asdict(crops.PanAndScan()).items()}
    theirs = {key: getattr(processor, key, None) or usual for key, usual in wanted.items()}
    if not clip.pan_and_scan or any(getattr(clip, key) != value for key, value in theirs.items()):
        keys = " ".join(f"--config.data.clip.{key}={value}" for key, value in {"pan_and_scan": True, **theirs}.items())
        raise UserError(f"{path} has do_pan_and_scan, expected the same settings for the model: give {keys}")


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
        tokenizer |= file_readers.read_json(path, fix="download the tokenizer again")
    contents = {
        pretrained.PREPROCESSOR: images.to_dict(),
        pretrained.PROCESSOR: {"processor_class": _CLASS, "image_seq_length": image_tokens},
        path.name: tokenizer,
    }
    return {name: json.dumps(values, indent=2, sort_keys=True) + "\n" for name, values in contents.items()}
