"""Rows of chat data: turns of `from` and `value` as in LLaVA, or of `role` and `content` as in chat templates.

A turn's content is a text, or a list of parts {"type": "text", "text"} and {"type": "image"}. A part may name its image
itself ("image", "path" or "url"); other images are those of the row (`image` or `images`), in order.
"""

from collections.abc import Mapping
from typing import Any

from jworld.data.conversations import chat

#: Names of speakers in published sets -> roles.
ROLES: Mapping[str, chat.Role] = {
    "human": "user",
    "user": "user",
    "gpt": "model",
    "assistant": "model",
    "model": "model",
    "system": "system",
}
_SPEAKER, _TEXT = ("from", "role"), ("value", "content")
_LOCATIONS = ("image", "path", "url")


def read_row(raw: Mapping[str, Any]) -> tuple[tuple[chat.Turn, ...], list[Any]]:
    """Return the turns of a row, with a `chat.PLACE` for every image part, and the names of its images in order.

    Raises:
      ValueError: the row has no turns, or a malformed one.
    """
    entries = raw.get("conversations") or raw.get("messages")
    if not entries or not isinstance(entries, list):
        raise ValueError("it has no conversations or messages")
    turns: list[chat.Turn] = []
    if (system := raw.get("system")) is not None:
        turns.append(chat.Turn("system", _checked(system, 0)))
    located: list[Any] = []
    for number, entry in enumerate(entries, start=1):
        text, own = _content(_first(entry, _TEXT), number)
        located += own
        turns.append(chat.Turn(_role(_first(entry, _SPEAKER), number), text))
    return tuple(turns), _names(located, _images(raw))


def _first(entry: Any, keys: tuple[str, ...]) -> Any:
    if not isinstance(entry, Mapping):
        raise ValueError(f"a turn is {str(entry)[:40]!r}, expected an object")
    return next((entry[key] for key in keys if key in entry), None)


def _role(speaker: Any, number: int) -> chat.Role:
    if speaker not in ROLES:
        raise ValueError(f"turn {number} is from {speaker!r}, expected one of {', '.join(ROLES)}")
    return ROLES[speaker]


def _content(content: Any, number: int) -> tuple[str, list[Any]]:
    """Return the text of a turn, and for each place in it the name of its image, or None for the row's next one."""
    if not isinstance(content, list):
        text = _checked(content, number)
        return text, [None] * text.count(chat.PLACE)
    text, located = "", list[Any]()
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "text":
            piece = _checked(part.get("text"), number)
            text += piece
            located += [None] * piece.count(chat.PLACE)
        elif kind in ("image", "image_url"):
            text += chat.PLACE
            located.append(_location(part))
        else:
            raise ValueError(f"turn {number} has a part of type {kind!r}, expected text or image")
    return text, located


def _location(part: Mapping[str, Any]) -> Any:
    if isinstance(nested := part.get("image_url"), Mapping):
        return nested.get("url")
    return nested or next((part[key] for key in _LOCATIONS if part.get(key)), None)


def _checked(text: Any, number: int) -> str:
    if not isinstance(text, str):
        raise ValueError(f"turn {number} has the content {str(text)[:40]!r}, expected a text or a list of parts")
    return text


def _images(raw: Mapping[str, Any]) -> list[Any]:
    found = raw.get("image") or raw.get("images") or []
    return found if isinstance(found, list) else [found]


def _names(located: list[Any], images: list[Any]) -> list[Any]:
    """Return the images in the order of their places; those of the row without a place are last."""
    rest = iter(images)
    names = [next(rest, None) if name is None else name for name in located]
    return [name for name in names if name is not None] + list(rest)


def order_problem(turns: tuple[chat.Turn, ...]) -> str:
    """Return why turns are not a conversation to train on, "" if they are."""
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    if not spoken or spoken[0].role != "user":
        return "it does not start with a user's turn"
    for number, (turn, following) in enumerate(zip(spoken, [*spoken[1:], None], strict=True), start=1):
        if following is not None and following.role == "system":
            return f"turn {number + 1} is the system's, expected only the first one"
        if following is not None and following.role == turn.role:
            both = "answers" if turn.role == "model" else "questions"
            return f"turns {number} and {number + 1} are both {both}"
        if turn.role == "model" and not turn.text.strip():
            return f"turn {number} is an empty answer"
    return "it ends with a question that has no answer" if spoken[-1].role == "user" else ""
