"""BLINK: multiple-choice questions about one or several images.

There is a folder per task with the published tables, such as DIR/Relative_Depth/val-00000-of-00001.parquet. The columns
are image_1 to image_4, question, choices, answer. The prompt is the original's (scripts/evaluate_blink.py). With
`original` so is the parsing of answers, which takes one without a choice for "A". The original uses only the first
image; here all are used. The test split hides the answers.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image

from jworld.data import tables
from jworld.data.conversations import image_files
from jworld.systems.theworld.evaluation import answers, benchmarks
from jworld.utils.errors import UserError

MAX_TOKENS = 10
_IMAGES = tuple(f"image_{i}" for i in range(1, 5))
_NEEDED = ("question", "choices", "answer")


def load(
    directory: pathlib.Path, *, split: str, limit: int, images: int, original: bool = False
) -> benchmarks.Benchmark:
    """Load all tasks of a folder, at most `limit` questions per task (0: all) and `images` images per question.

    Answers are parsed as by the original with `original`, else by `answers.read_choice`.

    Raises:
      UserError: there is no table, it has other columns, or the answers are hidden.
    """
    files: dict[str, list[pathlib.Path]] = {}
    for path in sorted(directory.glob(f"*/{split}-*.parquet")):
        files.setdefault(path.parent.name, []).append(path)
    if not files:
        raise UserError(
            f"{directory} holds no table of BLINK, expected for example Relative_Depth/{split}-00000-of-00001.parquet: "
            "correct --data"
        )
    examples = []
    for task, paths in files.items():
        own = [example for path in paths for example in _task(path, task, images)]
        examples += own[: limit or None]
    chance = float(np.mean([100 / len(example.choices) for example in examples]))
    return benchmarks.Benchmark(
        name="BLINK",
        examples=examples,
        max_tokens=MAX_TOKENS,
        read=_read_original if original else _read,
        measure=measure,
        chance=chance,
    )


def _task(path: pathlib.Path, task: str, images: int) -> list[benchmarks.Example]:
    names = tables.columns(path)
    if missing := [name for name in (*_NEEDED, _IMAGES[0]) if name not in names]:
        raise UserError(f"{path} has no column {missing[0]}, expected a table of BLINK: fetch it again")
    columns = [name for name in _IMAGES if name in names][:images]
    examples = []
    for group, number, row in tables.rows(path, list(_NEEDED)):
        letter = str(row["answer"]).strip().strip("()").upper()
        if letter not in answers.LETTERS or not letter:
            raise UserError(
                f"{path}: the answer of row {number} is {row['answer']!r}, expected a letter: the split test has no "
                "answers, use val"
            )
        examples.append(
            benchmarks.Example(
                name=f"{task}/{group}/{number}",
                task=task,
                prompt=answers.blink_prompt(row["question"], row["choices"]),
                truth=letter,
                choices=tuple(row["choices"]),
                options=tuple(answers.LETTERS[: len(row["choices"])]),
                load=functools.partial(_images, path, group, number, columns),
            )
        )
    return examples


def _images(path: pathlib.Path, group: int, row: int, columns: Sequence[str]) -> list[PIL.Image.Image]:
    """Read the images of a row; empty columns are skipped."""
    values = [(column, tables.cell(str(path), group, column, row)) for column in columns]
    places = [{"parquet": str(path), "group": group, "row": row, "column": column} for column, value in values if value]
    return [image_files.read(place, pathlib.Path.cwd()) for place in places]


def _read(example: benchmarks.Example, text: str) -> str | None:
    return answers.read_choice(text, example.choices)


def _read_original(example: benchmarks.Example, text: str) -> str:
    return answers.blink_choice(text, example.choices)


def measure(rows: Sequence[benchmarks.Row]) -> dict[str, Any]:
    """Compute accuracy, F1 (percent) and the confusion matrix `[truth][prediction]` over the letters that occur.

    Answers without a letter are wrong; the matrix does not contain them.
    """
    letters = sorted({row["truth"] for row in rows} | {row["parsed"] for row in rows if row["parsed"] is not None})
    matrix = np.zeros((len(letters), len(letters)), int)
    for row in rows:
        if row["parsed"] is None:
            continue
        matrix[letters.index(row["truth"]), letters.index(row["parsed"])] += 1
    truths = np.array([sum(row["truth"] == letter for row in rows) for letter in letters])
    right, predictions = np.diag(matrix), matrix.sum(0)
    f1 = 2 * right / np.maximum(truths + predictions, 1)
    return {
        **benchmarks.accuracy(rows),
        "f1_macro": 100 * float(f1.mean()),
        "f1_weighted": 100 * float((f1 * truths).sum() / truths.sum()),
        "letters": letters,
        "confusion_matrix": matrix.tolist(),
    }
