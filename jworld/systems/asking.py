"""Questions to a system that answers in text, and how its answers are drawn."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import numpy as np

from jworld.data.conversations import chat
from jworld.utils import ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of the random choice of tokens.

    Attributes:
      max_tokens: largest number of tokens of an answer.
      temperature: logits are divided by this before a token is drawn; 0 takes the most likely token.
      top_k: draw from this number of most likely tokens; 0 for all.
      top_p: draw from the most likely tokens whose probabilities reach this sum, above 0 and at most 1.
      stop: texts that end an answer, without being part of it.
      seed: random seed of the draws.
    """

    max_tokens: ranges.Size = 128
    temperature: Annotated[float, ranges.Range(0, 100)] = 0.0
    top_k: ranges.CountOrZero = 0
    top_p: ranges.ShareAboveZero = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        ranges.check(self)
        if not all(self.stop):
            raise ValueError("stop holds an empty text, which would end every answer: leave it out")

    def cut(self, text: str) -> str:
        """Return the text before the first of the stop texts."""
        return text[: min((place for place in map(text.find, self.stop) if place >= 0), default=len(text))]

    def is_stopped(self, text: str) -> bool:
        """Return whether a text contains a stop text."""
        return any(stop in text for stop in self.stop)

    def settled(self, text: str) -> str:
        """Return the text without an end that may become a stop text with further tokens."""
        longest = max(
            (n for stop in self.stop for n in range(1, len(stop)) if text.endswith(stop[:n])),
            default=0,
        )
        return text[: len(text) - longest]


class TextStream:
    """Text of an answer as its tokens arrive; a letter, or a stop text, may need more than one token."""

    def __init__(self, decode: Callable[[Sequence[int]], str], sampling: Sampling) -> None:
        """Begin an answer; `decode` turns tokens into text."""
        self._decode, self._sampling = decode, sampling
        self._tokens, self._shown = list[int](), ""

    def add(self, token: int) -> str:
        """Return the text that is certain with one more token, and was not before."""
        self._tokens.append(token)
        text = self._decode(self._tokens)
        return "" if text.endswith("\N{REPLACEMENT CHARACTER}") else self._new(self._sampling.settled(text))

    def end(self) -> str:
        """Return the text that was held back."""
        return self._new(self._decode(self._tokens))

    def _new(self, text: str) -> str:
        if not text.startswith(self._shown):
            return ""
        shown, self._shown = self._shown, text
        return text[len(shown) :]


class Answer(NamedTuple):
    """The text of an answer and its number of tokens."""

    text: str
    tokens: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """The turns of a conversation whose next turn is the answer.

    Attributes:
      turns: the turns; the text of a user may have a `chat.PLACE` for every image.
      images: number of images.
      load: function that reads the images, uint8 [H, W, 3]; a `ValueError` if one cannot be read.
      sampling: how the answer is drawn.
    """

    turns: tuple[chat.Turn, ...]
    images: int = 0
    load: Callable[[], Sequence[np.ndarray]] = tuple
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
