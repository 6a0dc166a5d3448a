"""SpatialRGPT-Bench: free answers about regions of an image, scored by rules or by a judge.

Rows are as published, in a parquet table with images, or in JSON lines with a folder of images. The rules parse a yes
or no, the first region that is named, a length with its unit, or a direction as on a clock. A truth that they cannot
parse does not count, and is reported. The published scores come from language models as
judges, whose prompts describe the same rules (SpatialRGPT, Tables 12 and 13).
"""

import functools
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jworld.data import json_rows, tables
from jworld.data.conversations import formats, image_files, spatial
from jworld.systems.theworld.evaluation import answers, benchmarks, quantities
from jworld.utils.errors import UserError

MAX_TOKENS = 128
#: Prompts -> a judge's replies.
Judge = Callable[[Sequence[str]], Sequence[str]]

_REGION = re.compile(r"region \[?(\d+)\]?", re.IGNORECASE)
_POLARITY = {"yes": "yes", "indeed": "yes", "correct": "yes", "no": "no", "not": "no", "incorrect": "no"}


def load(
    path: pathlib.Path, images: str, *, limit: int, judge: Judge | None = None, draw_boxes: bool = True
) -> benchmarks.Benchmark:
    """Load the questions of a table or a file, at most `limit` (0: all).

    Args:
      path: a .parquet file, a folder of such files, or JSON lines.
      images: folder of the images of JSON lines.
      limit: largest number of questions; 0 for all.
      judge: function that replies to prompts about answers; None scores by rules.
      draw_boxes: draw the regions, which the questions refer to by number, into the images.

    Raises:
      UserError: the file has another format, or a row has no question or no answer.
    """
    examples: list[benchmarks.Example] = []
    for raw, place in _rows(path, images):
        if len(examples) == limit > 0:
            break
        examples.append(_example(raw, place, number=len(examples), path=path, draw_boxes=draw_boxes))
    if not examples:
        raise UserError(f"{path} holds no question, expected SpatialRGPT-Bench: correct --data")
    return benchmarks.Benchmark(
        name="SpatialRGPT-Bench",
        examples=examples,
        max_tokens=MAX_TOKENS,
        read=lambda example, text: text,
        measure=measure,
        chance=None,
        judge=functools.partial(judge_rows, judge=judge),
    )


def _rows(path: pathlib.Path, images: str) -> Iterator[tuple[Mapping[str, Any], image_files.ImageSource]]:
    if path.is_dir() or path.suffix == ".parquet":
        for file in tables.files(path, ".parquet"):
            names = [name for name in tables.columns(file) if name != "image"]
            for group, number, raw in tables.rows(file, names):
                yield raw, {"parquet": str(file.absolute()), "group": group, "row": number, "column": "image"}
        return
    config = formats.SetConfig(format="spatial_rgpt", path=str(path), images=images)
    stems = formats.image_stems(config)
    for number, raw in enumerate(json_rows.read(path)):
        try:
            yield raw, formats.spatial_image(config, raw, stems)
        except ValueError as error:
            raise UserError(f"{path}: row {number}: {error}: correct it") from error


def _example(
    raw: Mapping[str, Any], place: image_files.ImageSource, *, number: int, path: pathlib.Path, draw_boxes: bool
) -> benchmarks.Example:
    try:
        row = spatial.read_row(raw, number=number)
    except ValueError as error:
        raise UserError(f"{path}: row {number}: {error}: correct it") from error
    if len(row.turns) < 2:
        raise UserError(f"{path}: row {number} has no answer, expected the split with answers: correct --data")
    place = {**place, "boxes": [list(box) for box in row.boxes]} if draw_boxes and row.boxes else place
    return benchmarks.Example(
        name=row.id,
        task="SpatialRGPT-Bench",
        prompt=row.turns[0].text,
        truth=row.turns[1].text,
        load=lambda: [image_files.read(place, pathlib.Path.cwd())],
        facts={"qa_type": row.qa_type, "qa_category": row.qa_category},
    )


def judge_rows(rows: Sequence[benchmarks.Row], *, judge: Judge | None) -> None:
    """Set `score`, `parsed`, and `relative_error` or, for directions, `degrees` in quantitative rows."""
    if judge is None:
        for row in rows:
            _by_rules(row)
        return
    replies = judge([judge_prompt(row) for row in rows])
    for row, reply in zip(rows, replies, strict=True):
        row["judge_response"] = reply
        if row["qa_type"] == "quantitative":
            _score_lengths(row, answers.two_numbers(reply))
        else:
            row["score"] = float(answers.is_one(reply))


def judge_prompt(row: benchmarks.Row) -> str:
    """Return the prompt for a judge of an answer."""
    facts = f"Question: {row['prompt']}\nRight answer: {row['truth']}\nGiven answer: {row['prediction']}\n\n"
    if row["qa_type"] == "quantitative":
        return (
            "Convert both answers to meters. 1 inch is 0.0254 meters, 1 foot 0.3048 meters, 1 centimeter 0.01 meters.\n"
            f"{facts}Reply with two numbers only, in meters: that of the right answer, then that of the given answer:"
        )
    return (
        "Judge whether the given answer says the same as the right one.\n"
        f"{facts}Reply with one digit only: 1 if it does, 0 if it does not:"
    )


def _by_rules(row: benchmarks.Row) -> None:
    if row["qa_type"] != "quantitative":
        meant, row["parsed"] = _meaning(row["truth"]), _meaning(row["prediction"])
        row["score"] = None if meant is None else float(meant == row["parsed"])
        return
    direction, truth = quantities.clock(row["truth"]), quantities.length(row["truth"])
    if direction is not None:
        row["parsed"] = answered = quantities.clock(row["prediction"])
        row["degrees"] = None if answered is None else quantities.degrees_between(direction, answered)
        row["score"] = float(answered is not None and row["degrees"] <= quantities.RIGHT_DEGREES)
    elif truth is None:
        row["score"] = None
    else:
        row["parsed"] = length = quantities.length(row["prediction"])
        _score_lengths(row, None if length is None else (truth, length))


def _score_lengths(row: benchmarks.Row, lengths: tuple[float, float] | None) -> None:
    row["relative_error"] = None if lengths is None else answers.relative_error(*lengths)
    row["score"] = float(lengths is not None and row["relative_error"] <= answers.RIGHT_WITHIN)


def _meaning(text: str) -> str | None:
    """Return a yes or no in the first words, else the number of the first region that is named."""
    for word in re.findall("[a-z]+", text.lower())[:3]:
        if word in _POLARITY:
            return _POLARITY[word]
    region = _REGION.search(text)
    return region.group(1) if region else None


def measure(rows: Sequence[benchmarks.Row]) -> dict[str, Any]:
    """Compute the original's metrics over rows whose truth can be read, with the accuracy in percent.

    Directions have metrics of their own. Both kinds of unreadable texts are counted.
    """
    counted = [row for row in rows if row["score"] is not None]
    lengths = [row for row in counted if "degrees" not in row]
    numbers = answers.spatial_accuracy(counted)
    return {
        **numbers,
        "quantitative_metrics": answers.spatial_accuracy(lengths)["quantitative_metrics"],
        "direction_metrics": _directions([row for row in counted if "degrees" in row]),
        "accuracy": 100 * numbers["accuracy"],
        "unparsed": sum(row["parsed"] is None for row in counted),
        "unreadable_truths": [row["name"] for row in rows if row["score"] is None],
    }


def _directions(rows: Sequence[benchmarks.Row]) -> dict[str, Any]:
    errors = [row["degrees"] for row in rows if row["degrees"] is not None]
    return {
        "total": len(rows),
        "correct": sum(row["score"] == 1.0 for row in rows),
        "mean_error_degrees": sum(errors) / len(errors) if errors else None,
    }
