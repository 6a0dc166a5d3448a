"""Tokenizers, image processors and configs of published models, read from local folders with transformers.

Importing transformers takes 2 to 5 seconds where PyTorch is installed, which it then imports as well. It is therefore
imported when a folder is read, never with this module. Nothing here needs PyTorch, uses the network, or runs code that
comes with a model.
"""

import contextlib
import importlib
import os
import pathlib
import textwrap
from collections.abc import Iterator
from typing import Any

import numpy as np

from jworld.utils import placeholders
from jworld.utils.errors import UserError

#: Files that a tokenizer can be read from.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")
PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
# Without PyTorch, transformers prints on import that models are not available.
_SILENCE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"

_MESSAGE_LENGTH = 300


def library() -> Any:
    """Import transformers, without its advice on what is not installed."""
    given = os.environ.get(_SILENCE)
    os.environ[_SILENCE] = "1"
    try:
        return importlib.import_module("transformers")
    finally:
        if given is None:
            del os.environ[_SILENCE]
        else:
            os.environ[_SILENCE] = given


@contextlib.contextmanager
def quiet() -> Iterator[Any]:
    """Provide transformers, without its warnings inside the context: whatever matters is an error here."""
    transformers = library()
    logging = transformers.utils.logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield transformers
    finally:
        logging.set_verbosity(verbosity)


def load_tokenizer(folder: pathlib.Path) -> Any:
    """Load the tokenizer of a folder; it pads and truncates on the right.

    Raises:
      UserError: the folder has none of `TOKENIZER_FILES`, or they cannot be read or are Git LFS pointers.
    """
    # Without this check an empty tokenizer would be made from the config alone.
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(
            f"{folder} has no tokenizer: expected one of {', '.join(TOKENIZER_FILES)} in it, download the whole model"
        )
    placeholders.refuse_in(folder, (".json", ".model", ".txt"))
    # Otherwise a file of SentencePiece is taken for one of another library, whose absence the error then reports.
    if not (folder / "tokenizer.json").is_file() and any(folder.glob("*.model")):
        _require_sentencepiece(folder)
    try:
        with quiet() as transformers:
            return transformers.AutoTokenizer.from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,
                padding_side="right",
                truncation_side="right",
            )
    except Exception as error:  # the libraries' own exceptions have no common class
        raise UserError(
            f"tokenizer in {folder} cannot be read ({describe(error)}): download the model again"
        ) from error


def find_image_processor(folder: pathlib.Path) -> pathlib.Path | None:
    """Return the file of a folder's image processor: version 5 of transformers saves it in processor_config.json."""
    own, shared = folder / PREPROCESSOR, folder / PROCESSOR
    if own.is_file():
        return own
    return shared if shared.is_file() and '"image_processor"' in shared.read_text(encoding="utf-8") else None


def load_image_processor(folder: pathlib.Path, *, size: int) -> Any:
    """Load the image processor of a folder and check that it makes square images of `size` pixels.

    Raises:
      UserError: preprocessor_config.json is absent or damaged, makes images of another size, or leaves their values
        as they are.
    """
    fix = f"download the model's {PREPROCESSOR}"
    path = find_image_processor(folder)
    if path is None:
        raise UserError(f"{folder / PREPROCESSOR} is absent: {fix}")
    placeholders.refuse(path)
    try:
        with quiet() as transformers:
            # With Pillow, on bytes: torchvision resizes to slightly different pixels.
            processor = transformers.AutoImageProcessor.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, backend="pil"
            )
        shape = image_values(processor, np.zeros((1, 2 * size, size, 3), np.uint8)).shape[2:]
    except Exception as error:  # as above
        raise UserError(f"{path} is not usable ({describe(error)}): {fix}") from error
    if shape != (size, size):
        raise UserError(f"{path} makes images of {shape[1]}x{shape[0]} pixels, expected {size}x{size}: {fix}")
    for key in ("do_resize", "do_rescale", "do_normalize"):
        if not getattr(processor, key, None):
            raise UserError(f"{path}: {key} is {getattr(processor, key, None)}, expected true: {fix}")
    return processor


def image_values(processor: Any, images: np.ndarray) -> np.ndarray:
    """Resize and normalize images as the model reads them: uint8 [B, H, W, 3] -> float32 [B, 3, height, width]."""
    values: np.ndarray = processor(list(images), input_data_format="channels_last", return_tensors="np")["pixel_values"]
    return values


def _require_sentencepiece(folder: pathlib.Path) -> None:
    try:
        importlib.import_module("sentencepiece")
    except ImportError as error:
        raise UserError(
            f"tokenizer in {folder} is a file of SentencePiece, which is not installed: pip install sentencepiece, or "
            "give a folder with tokenizer.json"
        ) from error


def describe(error: Exception) -> str:
    """Return the first line of an error, cut to `_MESSAGE_LENGTH` characters."""
    first, *rest = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
    # A check of config fields gives the field in the first line and the reason, after its class, in the second.
    reason = rest[0].split(": ", 1)[-1] if rest and first.endswith(":") else first
    # Some list every model that the library knows.
    return textwrap.shorten(reason, _MESSAGE_LENGTH, placeholder=" ...")
