"""Readers of published sets of conversations, which do not open the images.

| format | path | a row |
| --- | --- | --- |
| llava | JSON array or lines | `conversations` or `messages`, `image` or `images`; see `chat_rows` |
| captions | .tar shards (webdataset), tables, or lists of URLs; see `captions` | an image and its caption |
| spatial_rgpt | JSON array or lines | `filename` (without suffix), `image_info` or `image`; see `spatial` |
| vsr | JSON array or lines | `image` or `image_link`, `caption`, `label` |
"""

import ast
import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from jworld.data import json_rows
from jworld.data.conversations import captions, chat, chat_rows, image_files, remote, spatial
from jworld.utils import ranges
from jworld.utils.errors import UserError, one_line

#: The original's prompt for training on VSR (configs/vsr_training.json).
VSR_QUESTION = "Statement: {caption}\nAnswer (only '0' or '1'):"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetConfig:
    """Selection of conversations (`config.data.conversations`).

    Attributes:
      format: one of `FORMATS`, or "questions" for generated questions about recorded episodes.
      path: data to read, see the table of this module; unused for questions.
      images: folder of the images that rows name, which names do not leave; without it they are URLs or whole paths.
      question: user's question about an image with a caption; for VSR, {caption} in it is replaced by the caption.
      draw_boxes: for SpatialRGPT, draw and label the regions in the image.
      limit: number of rows to read, at most; 0 reads all.
      val_share: share of the images whose conversations are held out, from 0 to below 1.
    """

    format: str = "questions"
    path: str = ""
    images: str = ""
    question: str = "Describe this image in detail."
    draw_boxes: bool = False
    limit: ranges.CountOrZero = 0
    val_share: ranges.ShareBelowOne = 0.01

    def __post_init__(self) -> None:
        if self.format not in (*FORMATS, "questions"):
            raise ValueError(f"format is {self.format!r}, expected one of {', '.join((*FORMATS, 'questions'))}")
        if self.format == "questions" and self.path:
            raise ValueError(
                f"path is {self.path!r}, but format is 'questions', which reads no file: set format to one of "
                f"{', '.join(FORMATS)}"
            )
        ranges.check(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversation:
    """One conversation about images.

    Attributes:
      name: its name in messages.
      turns: alternating turns of user and model, after one of the system if there is one.
      places: locations of its images, in the order of their places in the text.
      single_turn: whether the original reads it as one question with its answer, see `chat.ChatTokenizer.encode`.
      split: "train" or "val"; None to draw it from the image.
      problem: why it cannot be used, "" if it can.
    """

    name: str
    turns: tuple[chat.Turn, ...] = ()
    places: tuple[image_files.ImageSource, ...] = ()
    single_turn: bool = True
    split: str | None = None
    problem: str = ""

    @property
    def opening(self) -> "Opening":
        """The turns before the first answer, which is their reference, and the images that they show."""
        count = next((number for number, turn in enumerate(self.turns) if turn.role == "model"), len(self.turns))
        asked = self.turns[:count]
        truth = self.turns[count].text if count < len(self.turns) else ""
        images = chat.count_places(asked) if chat.count_places(self.turns) else len(self.places)
        return Opening(asked, self.places[:images], truth)


class Opening(NamedTuple):
    """The first question of a conversation: its turns, its images, and the reference answer."""

    turns: tuple[chat.Turn, ...]
    places: tuple[image_files.ImageSource, ...]
    truth: str

    @property
    def text(self) -> str:
        """The question in plain text, without places for images."""
        return "\n".join(turn.text.replace(chat.PLACE, "").strip() for turn in self.turns)


Rows = Iterator[Conversation]


def read(config: SetConfig, directory: pathlib.Path = pathlib.Path(".")) -> Rows:
    """Yield every conversation of a set, in order; `directory` receives files that are downloaded."""
    if not config.path:
        raise UserError(
            f"config.data.conversations.path is empty, expected the data of format {config.format!r}: set it"
        )
    yield from itertools.islice(FORMATS[config.format](config, directory), config.limit or None)


def _llava(config: SetConfig, directory: pathlib.Path) -> Rows:
    for number, raw in enumerate(json_rows.read(pathlib.Path(config.path))):
        name = str(raw.get("id") or number)
        try:
            turns, images = chat_rows.read_row(raw)
        except ValueError as error:
            yield Conversation(name=name, problem=str(error))
            continue
        try:
            places = tuple(_below(config, image) for image in images)
        except ValueError as error:
            yield Conversation(name=name, problem=str(error))
            continue
        yield Conversation(name=name, turns=turns, places=places, single_turn=len(turns) <= 2)


def _captions(config: SetConfig, directory: pathlib.Path) -> Rows:
    for name, caption, place in captions.read(config.path, directory):
        if place is None:
            yield Conversation(name=name, problem="it has no image")
        elif not isinstance(caption, str) or not caption.strip():
            yield Conversation(name=name, problem="it has no caption")
        else:
            turns = (chat.Turn("user", config.question), chat.Turn("model", caption))
            yield Conversation(name=name, turns=turns, places=(place,))


def _spatial_rgpt(config: SetConfig, directory: pathlib.Path) -> Rows:
    stems = image_stems(config)
    for number, raw in enumerate(json_rows.read(pathlib.Path(config.path))):
        try:
            row = spatial.read_row(raw, number=number)
            place = spatial_image(config, raw, stems)
        except (ValueError, AttributeError, SyntaxError, RecursionError, MemoryError) as error:
            yield Conversation(name=str(raw.get("id") or number), problem=one_line(error))
            continue
        if config.draw_boxes and row.boxes:
            place = {**place, "boxes": [list(box) for box in row.boxes]}
        yield Conversation(name=row.id, turns=row.turns, places=(place,), single_turn=False)


def image_stems(config: SetConfig) -> dict[str, pathlib.Path]:
    """Return the images in `config.images` by file name without suffix."""
    return {file.stem: file for file in _folder(config).iterdir() if file.suffix.lower() in image_files.SUFFIXES}


def spatial_image(
    config: SetConfig, raw: Mapping[str, Any], stems: Mapping[str, pathlib.Path]
) -> image_files.ImageSource:
    """Return the location of the image of a SpatialRGPT row; a `ValueError` if the row names none."""
    if name := raw.get("filename"):
        if name not in stems:
            raise ValueError(f"{config.images} has no image {name}")
        return {"file": str(stems[name].absolute())}
    info = raw.get("image_info") or {}
    info = ast.literal_eval(info) if isinstance(info, str) else info
    name = info.get("file_path") or raw.get("image")
    if not isinstance(name, str):
        raise ValueError("it names no image: expected filename, image_info.file_path or image")
    return _below(config, name)


def _vsr(config: SetConfig, directory: pathlib.Path) -> Rows:
    question = config.question if "{caption}" in config.question else VSR_QUESTION
    for number, raw in enumerate(json_rows.read(pathlib.Path(config.path))):
        image, caption = raw.get("image") or raw.get("image_link"), raw.get("caption")
        if not isinstance(image, str) or not isinstance(caption, str) or str(raw.get("label")) not in ("0", "1"):
            yield Conversation(name=str(number), problem="expected image or image_link, caption, and label 0 or 1")
            continue
        turns = (
            chat.Turn("user", question.replace("{caption}", caption)),
            chat.Turn("model", str(raw["label"])),
        )
        yield Conversation(name=str(number), turns=turns, places=(_below(config, image.rpartition("/")[2]),))


def _folder(config: SetConfig) -> pathlib.Path:
    folder = pathlib.Path(config.images)
    if not config.images or not folder.is_dir():
        raise UserError(f"config.data.conversations.images is {config.images!r}, expected the folder of the images")
    return folder


def _below(config: SetConfig, name: Any) -> image_files.ImageSource:
    if remote.is_url(name):
        return {"url": name}
    path = pathlib.Path(str(name))
    # Without a folder the rows name files by their whole paths.
    if path.is_absolute() and not config.images:
        return {"file": str(path)}
    return {"file": str(image_files.inside(_folder(config), str(name)))}


FORMATS: dict[str, Callable[[SetConfig, pathlib.Path], Rows]] = {
    "llava": _llava,
    "captions": _captions,
    "spatial_rgpt": _spatial_rgpt,
    "vsr": _vsr,
}
