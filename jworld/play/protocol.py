"""Messages between server and players, see docs/play.md.

Players send JSON objects with a `type`, and the content of an image file as a binary message. The server sends JSON
objects, and every frame as a binary message: `HEADER` (little-endian), the name of the action, and the image.
"""

import dataclasses
import io
import json
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import PIL.Image

from jworld.systems import key_logs
from jworld.utils import limits

VERSION = 1
#: Version, format, width, height, step, frame, time in seconds since 1970, bytes of the action's name.
HEADER = struct.Struct("<BBHHIIdB")
RAW, JPEG, PNG, WEBP = "raw", "jpeg", "png", "webp"
FORMATS = (RAW, JPEG, PNG, WEBP)
#: Arguments of Pillow. JPEG without subsampling: small images lose their colors by it.
_ENCODED: Mapping[str, dict[str, Any]] = {
    JPEG: {"format": "jpeg", "quality": 90, "subsampling": 0},
    PNG: {"format": "png", "compress_level": 3},
    WEBP: {"format": "webp", "quality": 90, "method": 0},
}
#: Share of the time of a frame that its encoding may take.
_ENCODING_SHARE = 0.25


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
    """A frame as it is sent.

    Attributes:
      step: number of the step, from 0.
      frame: number of the frame since the start, from 0.
      action: held keys, such as "w+right".
      kind: one of `FORMATS`.
      size: (width, height).
      content: encoded image, or RGB bytes row by row.
    """

    step: int
    frame: int
    action: str
    kind: str
    size: tuple[int, int]
    content: bytes

    def pack(self, now: float) -> bytes:
        """Return the message, sent at the time `now` in seconds since 1970."""
        name = self.action.encode()
        kind = FORMATS.index(self.kind)
        return HEADER.pack(VERSION, kind, *self.size, self.step, self.frame, now, len(name)) + name + self.content


def unpack(message: bytes) -> tuple[Frame, float]:
    """Return the frame of a message, and the time at which it was sent, in seconds since 1970."""
    version, kind, width, height, step, frame, sent, length = HEADER.unpack_from(message)
    if version != VERSION:
        raise ValueError(f"a frame of version {version}, expected {VERSION}")
    start = HEADER.size + length
    action = message[HEADER.size : start].decode()
    kind = FORMATS[kind]
    size = (width, height)
    return Frame(step=step, frame=frame, action=action, kind=kind, size=size, content=message[start:]), sent


def pixels(frame: Frame) -> np.ndarray:
    """Decode a frame to uint8 [H, W, 3]."""
    if frame.kind == RAW:
        return np.frombuffer(frame.content, np.uint8).reshape(frame.size[1], frame.size[0], 3)
    with PIL.Image.open(io.BytesIO(frame.content)) as image:
        return np.asarray(image.convert("RGB"))


def encode(image: np.ndarray, kind: str) -> bytes:
    """Encode an image uint8 [H, W, 3] in one of `FORMATS`."""
    if kind == RAW:
        return np.ascontiguousarray(image).tobytes()
    stream = io.BytesIO()
    PIL.Image.fromarray(image).save(stream, **_ENCODED[kind])
    return stream.getvalue()


def smallest(image: np.ndarray, fps: float, clock: Callable[[], float] = time.perf_counter) -> str:
    """Return the format in which an image is smallest, among those that are encoded fast enough for `fps`."""
    sizes: dict[str, int] = {}
    for kind in _ENCODED:
        # The first call of an encoder also loads it.
        size = len(encode(image, kind))
        began = clock()
        encode(image, kind)
        if kind == JPEG or clock() - began < _ENCODING_SHARE / fps:
            sizes[kind] = size
    return min(sizes, key=lambda kind: sizes[kind])


class MessageError(ValueError):
    """A message that the protocol does not have; its text is sent to the player."""


@dataclasses.dataclass(frozen=True)
class Message:
    """A checked message of a player: its type, and its values by key."""

    kind: str
    values: dict[str, Any]


def _keys(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= 32 and all(isinstance(key, str) for key in value)


def _runs(value: Any) -> bool:
    """Return whether a value is a list of [action, steps], as share links hold it."""
    return (
        isinstance(value, list)
        and all(
            isinstance(run, list)
            and len(run) == 2
            and isinstance(run[0], str)
            and type(run[1]) is int
            and 0 < run[1] <= limits.PLAY_LOG
            for run in value
        )
        and sum(run[1] for run in value) <= limits.PLAY_LOG
    )


def _text(most: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and len(value) <= most


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**32


#: Type -> its keys with their checks; those that end with "?" may be missing.
_MESSAGES: Mapping[str, Mapping[str, Callable[[Any], bool]]] = {
    "keys": {"held": _keys},
    "pause": {"on": _is_bool},
    "step": {"held?": _keys},
    "pace": {"on": _is_bool},
    "format": {"name": lambda value: value in (*FORMATS, "auto")},
    "reset": {
        "seed?": _is_count,
        "prompt?": _text(limits.PLAY_PROMPT),
        "image?": _text(40),
        "steps?": lambda value: value is None or _is_count(value),
        "guidance?": lambda value: value is None or type(value) in (int, float),
        "script?": _runs,
    },
    "prompt": {"text": _text(limits.PLAY_PROMPT)},
    "shown": {"frame": _is_count},
    "ask": {"text": _text(limits.PLAY_QUESTION), "frame?": _is_count},
    "record": {"on": _is_bool},
    "log": {},
}


def parse(text: str) -> Message:
    """Return the message of a player.

    Raises:
      MessageError: it is not one.
    """
    if len(text) > limits.PLAY_MESSAGE_BYTES:
        raise MessageError(f"a message of {len(text):,} characters, expected at most {limits.PLAY_MESSAGE_BYTES:,}")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MessageError("the message is not JSON") from error
    kind = content.get("type") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in _MESSAGES:
        raise MessageError(f"the message has the type {str(kind)[:40]!r}, expected one of {', '.join(_MESSAGES)}")
    values = {key: value for key, value in content.items() if key != "type"}
    expected = _MESSAGES[kind]
    for key, value in values.items():
        check = expected.get(key) or expected.get(f"{key}?")
        if check is None:
            raise MessageError(f"{kind}: there is no key {key[:40]!r}")
        if not check(value):
            raise MessageError(f"{kind}: {key!r} is {str(value)[:60]!r}, which it cannot be")
    if missing := [key for key in expected if not key.endswith("?") and key not in values]:
        raise MessageError(f"{kind}: the key {missing[0]!r} is missing")
    return Message(kind, values)


def start(values: Mapping[str, Any], before: key_logs.Start, image: np.ndarray | None) -> key_logs.Start:
    """Return the start that a reset describes; what it leaves out stays as `before`.

    Raises:
      MessageError: a value is out of its range.
    """
    fields = {name: values.get(name, getattr(before, name)) for name in ("prompt", "seed", "steps", "guidance")}
    try:
        return key_logs.Start(image=image, **key_logs.checked(fields))
    except ValueError as error:
        raise MessageError(f"reset: {error}") from error
