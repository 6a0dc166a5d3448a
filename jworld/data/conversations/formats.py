"""Readers of published sets of conversations, which do not open the images.

| format | path | a row |
| --- | --- | --- |
| llava | JSON array or lines | `image` (a name or a list), `conversations` of `from` and `value` |
| captions | .tar shards (webdataset) or .parquet tables, a folder of them or one file | an image and its caption |
| spatial_rgpt | JSON array or lines | `filename` (without suffix), `image_info` or `image`; see `spatial` |
| vsr | JSON array or lines | `image` or `image_link`, `caption`, `label` |
"""

import ast
import dataclasses
import json
import pathlib
import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from jworld.data.conversations import chat, image_files, json_rows, spatial, tables
from jworld.utils.errors import UserError

_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp")
_CAPTION_COLUMNS = ("caption", "text", "txt")

#: The original's prompt for training on VSR (configs/vsr_training.json).
VSR_QUESTION = "Statement: {caption}\nAnswer (only '0' or '1'):"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetConfig:
    """Selection of conversations (`config.data.conversations`).

    Attributes:
      format: one of `FORMATS`, or "questions" for generated questions about recorded episodes.
      path: data to read, see the table of this module; unused for questions.
      images: folder of the images that rows name.
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
    limit: int = 0
    val_share: float = 0.01

    def __post_init__(self) -> None:
        if self.format not in (*FORMATS, "questions"):
            raise ValueError(f"format is {self.format!r}, expected one of {', '.join((*FORMATS, 'questions'))}")
        if not 0 <= self.val_share < 1 or self.limit < 0:
            raise ValueError(
                f"val_share is {self.val_share}, limit {self.limit}; expected a share from 0 to below 1, and 0 or more"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversation:
    """One conversation about images.

    Attributes:
      name: its name in messages.
      turns: alternating turns of user and model.
      places: locations of its images.
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


Rows = Iterator[Conversation]


def read(config: SetConfig) -> Rows:
    """Yield every conversation of a set, in order."""
    if not config.path:
        raise UserError(
            f"config.data.conversations.path is empty, expected the data of format {config.format!r}: set it"
        )
    for number, row in enumerate(FORMATS[config.format](config)):
        if number == config.limit > 0:
            return
        yield row


def _llava(config: SetConfig) -> Rows:
    for number, raw in enumerate(json_rows.read(pathlib.Path(config.path))):
        name = str(raw.get("id") or number)
        try:
            turns = tuple(_llava_turns(raw))
        except (ValueError, TypeError, AttributeError) as error:
            yield Conversation(name=name, problem=str(error))
            continue
        images = raw.get("image") or []
        names = [images] if isinstance(images, str) else images
        places = tuple(_below(config, image) for image in names)
        yield Conversation(name=name, turns=turns, places=places, single_turn=len(turns) <= 2)


def _llava_turns(raw: Mapping[str, Any]) -> Iterator[chat.Turn]:
    entries = raw.get("conversations")
    if not entries or not isinstance(entries, list):
        raise ValueError("it has no conversations")
    for entry in entries:
        role, text = entry.get("from"), entry.get("value")
        if role not in ("human", "gpt") or not isinstance(text, str):
            raise ValueError(f"a turn is from {role!r}, expected human or gpt, with a text as its value")
        yield chat.Turn("user" if role == "human" else "model", text.replace("<image>", "").strip())


def _captions(config: SetConfig) -> Rows:
    path = pathlib.Path(config.path)
    if not path.exists():
        raise UserError(f"config.data.conversations.path: {path} is absent: correct it")
    suffix = path.suffix if path.is_file() else ".parquet" if next(path.rglob("*.parquet"), None) else ".tar"
    # A folder written by img2dataset has both: tables of URLs, and shards of images.
    if suffix == ".parquet" and path.is_dir() and next(path.rglob("*.tar"), None):
        suffix = ".tar"
    for file in tables.files(path, suffix):
        yield from _shard(config, file) if suffix == ".tar" else _table(config, file)


def _pair(config: SetConfig, name: str, caption: Any, place: image_files.ImageSource) -> Conversation:
    if not isinstance(caption, str) or not caption.strip():
        return Conversation(name=name, problem="it has no caption")
    turns = (chat.Turn("user", config.question), chat.Turn("model", caption))
    return Conversation(name=name, turns=turns, places=(place,))


def _table(config: SetConfig, path: pathlib.Path) -> Rows:
    names = tables.columns(path)
    image = next((name for name in _IMAGE_COLUMNS if name in names), None)
    caption = next((name for name in _CAPTION_COLUMNS if name in names), None)
    if image is None or caption is None:
        raise UserError(
            f"{path} has the columns {', '.join(names)}, expected one of {', '.join(_IMAGE_COLUMNS)} and one of "
            f"{', '.join(_CAPTION_COLUMNS)}: download the images first, for example with img2dataset"
        )
    for group, number, row in tables.rows(path, [caption]):
        place = {"parquet": str(path.absolute()), "group": group, "row": number, "column": image}
        yield _pair(config, f"{path.stem}/{group}/{number}", row[caption], place)


def _shard(config: SetConfig, path: pathlib.Path) -> Rows:
    """Yield the pairs of a tar archive: consecutive files with the same name up to the first dot are one row."""
    name, place, caption = "", None, None
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                folder, _, file = member.name.rpartition("/")
                key, _, suffix = file.partition(".")
                key = f"{folder}/{key}" if folder else key
                if key != name and name:
                    yield _shard_row(config, path, name, caption, place)
                    place = caption = None
                name = key
                if f".{suffix.lower()}" in image_files.SUFFIXES:
                    place = {"tar": str(path.absolute()), "offset": member.offset_data, "size": member.size}
                elif suffix in ("txt", "json"):
                    content = archive.extractfile(member)
                    caption = _caption(suffix, content.read() if content else b"", caption)
    except (tarfile.TarError, OSError) as error:
        raise UserError(f"{path} is not a readable tar archive ({error}): download it again") from error
    if name:
        yield _shard_row(config, path, name, caption, place)


def _caption(suffix: str, data: bytes, previous: str | None) -> str | None:
    """Return the text of NAME.txt, else the one in NAME.json."""
    try:
        if suffix == "txt":
            return data.decode()
        facts = json.loads(data)
        return previous or next((facts[key] for key in _CAPTION_COLUMNS if isinstance(facts.get(key), str)), None)
    except (ValueError, AttributeError):
        return previous


def _shard_row(
    config: SetConfig, path: pathlib.Path, name: str, caption: str | None, place: image_files.ImageSource | None
) -> Conversation:
    name = f"{path.stem}/{name}"
    return _pair(config, name, caption, place) if place else Conversation(name=name, problem="it has no image")


def _spatial_rgpt(config: SetConfig) -> Rows:
    stems = image_stems(config)
    for number, raw in enumerate(json_rows.read(pathlib.Path(config.path))):
        try:
            row = spatial.read_row(raw, number=number)
            place = spatial_image(config, raw, stems)
        except (ValueError, AttributeError) as error:
            yield Conversation(name=str(raw.get("id") or number), problem=str(error))
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


def _vsr(config: SetConfig) -> Rows:
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
    return {"file": str((_folder(config) / str(name)).absolute())}


FORMATS: dict[str, Callable[[SetConfig], Rows]] = {
    "llava": _llava,
    "captions": _captions,
    "spatial_rgpt": _spatial_rgpt,
    "vsr": _vsr,
}
