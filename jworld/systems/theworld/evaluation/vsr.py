"""VSR: statements about images that are true or false. JSON lines as published, with a folder of images.

An answer without a verdict counts as wrong. With `original` answers are parsed as in scripts/vsr/evaluate_vsr.py, where
"not true" is true.
"""

import functools
import pathlib

import PIL.Image

from jworld.data.conversations import formats, image_files
from jworld.systems.theworld.evaluation import answers, benchmarks
from jworld.utils.errors import UserError

MAX_TOKENS = 4
QUESTION = (
    "Look at the image and judge the statement. Answer with one digit and nothing else: 1 if the statement is true, "
    "0 if it is false.\n\nStatement: {caption}\nAnswer (only '1' or '0'):"
)


def load(path: pathlib.Path, images: pathlib.Path, *, limit: int, original: bool = False) -> benchmarks.Benchmark:
    """Load the statements of a file, at most `limit` (0: all); unusable rows raise a `UserError`.

    Answers are parsed as by the original with `original`, else by `answers.read_verdict`.
    """
    config = formats.SetConfig(format="vsr", path=str(path), images=str(images), question=QUESTION, limit=limit)
    examples = [_example(row, path) for row in formats.read(config)]
    if not examples:
        raise UserError(f"{path} holds no statement, expected JSON lines: correct --data")
    return benchmarks.Benchmark(
        name="VSR",
        examples=examples,
        max_tokens=MAX_TOKENS,
        read=_read_original if original else _read,
        measure=benchmarks.accuracy,
        chance=50.0,
    )


def _example(row: formats.Conversation, path: pathlib.Path) -> benchmarks.Example:
    if row.problem:
        raise UserError(f"{path}: row {row.name}: {row.problem}: correct it")
    question, answer = row.turns
    return benchmarks.Example(
        name=row.name,
        task="VSR",
        prompt=question.text,
        truth=answer.text,
        choices=("0", "1"),
        load=functools.partial(open_images, row),
    )


def open_images(row: formats.Conversation, root: pathlib.Path = pathlib.Path(".")) -> list[PIL.Image.Image]:
    """Read the images of a conversation; a `ValueError` if one cannot be read."""
    return [image_files.read(place, root) for place in row.places]


def _read(example: benchmarks.Example, text: str) -> str | None:
    digit = answers.read_verdict(text)
    return None if digit is None else str(digit)


def _read_original(example: benchmarks.Example, text: str) -> str | None:
    digit = answers.vsr_digit(text)
    return None if digit is None else str(digit)
