"""Rows of SpatialRGPT's OpenSpatialDataset (training) and SpatialRGPT-Bench, as turns that name image regions.

Region numbers, boxes and texts are those of the original (theworld/datasets/spatial_rgpt.py, bbox_utils.py).
"""

import ast
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from jworld.data.conversations import chat

Box = tuple[float, float, float, float]

#: Placeholders of a region in a question; the longer one is replaced first.
_MARKS = ("<mask> <depth>", "<mask>")
_REGION = re.compile(r"Region \[(\d+)\]")
_THICKNESS, _FONT_SIZE = 3, 16
_COLORS = ("red", "lime", "blue", "yellow", "magenta", "cyan", "#FF8000", "#8000FF")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpatialRow:
    """One row: its turns, its distinct boxes (x1, y1, x2, y2) in pixels, and the kind of question."""

    id: str
    turns: tuple[chat.Turn, ...]
    boxes: tuple[Box, ...]
    qa_type: str | None
    qa_category: str | None


def read_row(raw: Mapping[str, Any], *, number: int) -> SpatialRow:
    """Parse a row of either data set; `number` names it if it has no id.

    Raises:
      ValueError: the row has neither conversations nor a question, or a malformed field.
    """
    boxes = [_box(box) for box in _literal(raw.get("bbox")) or []]
    regions = list(dict.fromkeys(boxes))
    info = _literal(raw.get("qa_info")) or {}
    if not isinstance(info, Mapping):
        raise ValueError(f"qa_info is {info!r}, expected an object with type and category")
    return SpatialRow(
        id=str(raw.get("id") or raw.get("filename") or number),
        turns=_with_regions(_turns(raw), [regions.index(box) for box in boxes]),
        boxes=tuple(regions),
        qa_type=info.get("type"),
        qa_category=info.get("category"),
    )


def _literal(value: Any) -> Any:
    """Parse a list or object that a published table stores as text."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{value[:40]!r} is neither a list nor an object") from error


def _box(box: Any) -> Box:
    try:
        left, top, right, bottom = map(float, box)
    except (TypeError, ValueError) as error:
        raise ValueError(f"bbox holds {box!r}, expected four numbers") from error
    return left, top, right, bottom


def _turns(raw: Mapping[str, Any]) -> list[chat.Turn]:
    conversations = _literal(raw.get("conversations"))
    if conversations:
        if not isinstance(conversations, list) or not all(isinstance(entry, Mapping) for entry in conversations):
            raise ValueError(f"conversations is {str(conversations)[:40]!r}, expected a list of turns")
        turns = []
        for entry in conversations:
            role = "user" if entry.get("from") == "human" else "model"
            turns.append(chat.Turn(role, str(entry.get("value", ""))))  # type: ignore[arg-type]
        first = turns[0].text.replace("<image>\n", "").replace("<image>", "")
        return [chat.Turn(turns[0].role, first), *turns[1:]]
    question = raw.get("text_q") or raw.get("question") or raw.get("prompt")
    if not question:
        raise ValueError("it has neither conversations nor text_q, question or prompt")
    answer = raw.get("answer")
    return [chat.Turn("user", str(question)), *([chat.Turn("model", str(answer))] if answer is not None else [])]


def _with_regions(turns: Iterable[chat.Turn], regions: Sequence[int]) -> tuple[chat.Turn, ...]:
    """Number the regions: the k-th mark of the conversation is box k, and equal boxes are one region.

    An answer numbers the regions of the preceding question from 0.
    """
    marks = 0
    named: list[int] = []
    written = []
    for turn in turns:
        text = turn.text
        if turn.role == "user":
            named = []
            for mark in _MARKS:
                while mark in text:
                    region = regions[marks] if marks < len(regions) else marks
                    text = text.replace(mark, f"Region [{region}]", 1)
                    named.append(region)
                    marks += 1
            text = text.replace("<depth>", "").strip()
        else:
            text = _REGION.sub(functools.partial(_renumbered, regions=tuple(named)), text)
        written.append(chat.Turn(turn.role, text))
    return tuple(written)


def _renumbered(match: re.Match[str], *, regions: Sequence[int]) -> str:
    number = int(match.group(1))
    return f"Region [{regions[number]}]" if number < len(regions) else match.group()


def clamp_box(box: Sequence[float], width: int, height: int) -> list[float]:
    """Clamp a box to the image and order its corners; it is at least one pixel wide and high, except at the edge."""
    left, right = sorted(max(0, min(width, x)) for x in (box[0], box[2]))
    top, bottom = sorted(max(0, min(height, y)) for y in (box[1], box[3]))
    return [
        left,
        top,
        min(left + 1, width) if right == left else right,
        min(top + 1, height) if bottom == top else bottom,
    ]


def draw_boxes(image: PIL.Image.Image, boxes: Sequence[Sequence[float]]) -> PIL.Image.Image:
    """Return a copy of the image with its regions framed and labeled; labels do not overlap if there is room."""
    image = image.convert("RGB")
    draw = PIL.ImageDraw.Draw(image)
    try:
        font: Any = PIL.ImageFont.truetype("DejaVuSans-Bold.ttf", _FONT_SIZE)
    except OSError:
        font = PIL.ImageFont.load_default()
    used: list[Box] = []
    for number, box in enumerate(boxes):
        left, top, right, bottom = clamp_box(box, *image.size)
        color, name = _COLORS[number % len(_COLORS)], f"Region [{number}]"
        draw.rectangle((left, top, right, bottom), outline=color, width=_THICKNESS)
        x0, y0, x1, y1 = draw.textbbox((0, 0), name, font=font)
        place = _place((left, top, right, bottom), (x1 - x0, y1 - y0), used)
        used.append(place)
        draw.rectangle(place, fill=color)
        draw.text((place[0] - x0, place[1] - y0), name, fill="white", font=font)
    return image


def _place(box: Box, size: tuple[float, float], used: Sequence[Box]) -> Box:
    """Return the rectangle of a box's label: the first of six positions that is still free."""
    (left, top, right, bottom), (width, height) = box, size
    corners = (
        (left, top - height),
        (left, bottom),
        (left, top),
        (right, top),
        (left - width, top),
        (left, bottom - height),
    )
    places = [(max(0.0, x), max(0.0, y), max(0.0, x) + width, max(0.0, y) + height) for x, y in corners]
    return next((place for place in places if not any(_overlap(place, other) for other in used)), places[0])


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
