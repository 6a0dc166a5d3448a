"""Files of questions for `jworld.generate --batch`: one JSON object per line, or a JSON list of them.

| key | value |
| --- | --- |
| prompt | the question; `<image>` in it is the place of an image |
| messages | instead of it: turns of `role` and `content`, see `data.conversations.chat_rows` |
| image, images | name of a file, or a list of them, relative to the current folder |
| system | text that precedes the conversation |
| max_tokens, temperature, top_k, top_p, stop, seed | see `asking.Sampling` |

Other keys are copied to the answer.
"""

import dataclasses
import difflib
import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jworld.data import media
from jworld.data.conversations import chat, chat_rows
from jworld.systems import asking, requests
from jworld.utils import config_keys, errors
from jworld.utils.ranges import describe, fits

_TYPES = config_keys.field_types(asking.Sampling)
_KEYS = ("prompt", "messages", "image", "images", "system", *_TYPES)
#: Similarity from which on an unknown key is taken for a misspelled one.
_NEAR = 0.8


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry of a file: its place, for errors, its values, and its question."""

    where: str
    values: Mapping[str, Any]
    question: asking.Question


def read(path: pathlib.Path, *, sampling: asking.Sampling, system: str = "") -> list[Entry]:
    """Read a file; entries have the given `sampling` and system text unless they name others.

    Raises:
      UserError: the file cannot be read, or an entry is invalid.
    """
    entries = []
    for where, values in requests.read_batch(path):
        try:
            entries.append(Entry(where, values, _question(values, sampling, system)))
        except ValueError as error:
            raise errors.UserError(f"{where}{error}: correct it") from error
    return entries


def _question(values: Any, sampling: asking.Sampling, system: str) -> asking.Question:
    if not isinstance(values, dict):
        raise ValueError(f"expected an object such as {{'prompt': '...', 'image': 'a.png'}}, got {values!r}")
    for key in values:
        if key not in _KEYS and (near := difflib.get_close_matches(key, _KEYS, 1, _NEAR)):
            raise ValueError(f"unknown key {key!r}, did you mean {near[0]!r}?")
    if ("prompt" in values) == ("messages" in values):
        raise ValueError("expected either 'prompt' or 'messages'")
    messages = values.get("messages") or [{"role": "user", "content": values["prompt"]}]
    names = {key: values[key] for key in ("image", "images") if values.get(key)}
    turns, images = chat_rows.read_row({"messages": messages, **names})
    return dataclasses.replace(
        make(turns, [pathlib.Path(str(name)) for name in images], system=values.get("system", system)),
        sampling=_sampling(values, sampling),
    )


def _sampling(values: Mapping[str, Any], default: asking.Sampling) -> asking.Sampling:
    own = {key: values[key] for key in _TYPES if key in values}
    if "stop" in own:
        own["stop"] = (own["stop"],) if isinstance(own["stop"], str) else tuple(own["stop"])
    for key, value in own.items():
        if not fits(value, _TYPES[key]):
            raise ValueError(f"{key!r} is {values[key]!r}, expected {describe(_TYPES[key])}")
    return dataclasses.replace(default, **own)


def make(turns: Sequence[chat.Turn], images: Sequence[pathlib.Path], *, system: str = "") -> asking.Question:
    """Return the question of a conversation about images in files.

    Raises:
      ValueError: the turns do not end with a question, or an image is absent.
    """
    if system and turns[0].role != "system":
        turns = [chat.Turn("system", system), *turns]
    if problem := chat_rows.order_problem((*turns, chat.Turn("model", "?"))):
        raise ValueError(problem)
    if absent := [path for path in images if not path.is_file()]:
        raise ValueError(f"the image {absent[0]} is absent")
    return asking.Question(turns=tuple(turns), images=len(images), load=functools.partial(_load, tuple(images)))


def _load(paths: Sequence[pathlib.Path]) -> list[np.ndarray]:
    return [media.read_image(path) for path in paths]
