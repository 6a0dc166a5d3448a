"""Conversations as tokens: Gemma's chat format, image spans, and which tokens are learnt.

`<bos>`, then for every turn `<start_of_turn>ROLE\n TEXT <end_of_turn>\n`; an open prompt ends with
`<start_of_turn>model\n`. Images stand before the first user's text, each as `\n\n<start_of_image>`, a fixed number of
`<image_soft_token>`, `<end_of_image>\n\n` (transformers, processing_gemma3.py). The model puts the
brackets of the world behind `<bos>`.

Labels are the tokens themselves at their own places, `IGNORED` where nothing is learnt; the loss shifts them.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import tokenizers

from jworld.utils import resources
from jworld.utils.errors import UserError

IGNORED = -100

PAD, EOS, BOS = "<pad>", "<eos>", "<bos>"
START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"
START_OF_IMAGE, IMAGE, END_OF_IMAGE = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
START_OF_WORLD, END_OF_WORLD = "<start_of_world>", "<end_of_world>"
SPECIAL = (PAD, EOS, BOS, START_OF_TURN, END_OF_TURN, START_OF_IMAGE, IMAGE, END_OF_IMAGE)
WORLD = (START_OF_WORLD, END_OF_WORLD)

Labels = Literal["answers", "original"]
Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Turn:
    """What one side says."""

    role: Literal["user", "model"]
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendered:
    """A conversation as text; `users` and `answers` are character spans of it.

    A user's span goes from `<start_of_turn>` to `<end_of_turn>`, an answer's from its first letter to `<end_of_turn>`.
    """

    text: str
    users: tuple[Span, ...]
    answers: tuple[Span, ...]


def render(turns: Sequence[Turn], *, images: int, image_tokens: int, is_open: bool) -> Rendered:
    """Write a conversation; an open one ends where the model begins to answer."""
    picture = f"\n\n{START_OF_IMAGE}{IMAGE * image_tokens}{END_OF_IMAGE}\n\n"
    text, pictures = BOS, picture * images
    users, answers = [], []
    for turn in turns:
        begin = len(text)
        text += f"{START_OF_TURN}{turn.role}\n"
        if turn.role == "user":
            text, pictures = text + pictures, ""
        said = len(text)
        text += turn.text.strip() + END_OF_TURN
        if turn.role == "user":
            users.append((begin, len(text)))
        else:
            answers.append((said, len(text)))
        text += "\n"
    if is_open:
        text += f"{START_OF_TURN}model\n"
    return Rendered(text=text, users=tuple(users), answers=tuple(answers))


@dataclasses.dataclass(frozen=True)
class Encoded:
    """tokens int32 [L], labels int32 [L]."""

    tokens: np.ndarray
    labels: np.ndarray


class ChatTokenizer:
    """A tokenizer and the number of tokens of an image.

    Attributes:
      ids: the numbers of the special tokens, those of the world's brackets among them.
      vocab_size: with the brackets.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, image_tokens: int) -> None:
        """Brackets that are missing are added at the end; `ValueError` where another special token is missing."""
        missing = [name for name in SPECIAL if tokenizer.token_to_id(name) is None]
        if missing:
            raise ValueError(f"it lacks the special tokens {', '.join(missing)}")
        tokenizer.add_special_tokens([name for name in WORLD if tokenizer.token_to_id(name) is None])
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.image_tokens = image_tokens
        self.ids: dict[str, Any] = {name: tokenizer.token_to_id(name) for name in (*SPECIAL, *WORLD)}
        self.vocab_size = tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(
        self,
        turns: Sequence[Turn],
        *,
        images: int,
        is_open: bool = False,
        labels: Labels = "answers",
        single_turn: bool = False,
    ) -> Encoded:
        """Write a conversation as tokens.

        Args:
          labels: "answers" learns what the model says and `<end_of_turn>` after it; "original" what the original's
            collator asks for: everything but the users' turns, or, of a `single_turn` conversation, everything after as
            many tokens as its question has without the image (theworld/data.py).

        Raises:
          ValueError: a turn contains a special token.
        """
        for turn in turns:
            if found := [name for name in self.ids if name in turn.text]:
                raise ValueError(f"the text contains {found[0]}, which means something else to the tokenizer")
        rendered = render(turns, images=images, image_tokens=self.image_tokens, is_open=is_open)
        encoding = self._tokenizer.encode(rendered.text, add_special_tokens=False)
        tokens = np.array(encoding.ids, np.int32)
        starts = np.array([start for start, _ in encoding.offsets])
        if labels == "answers":
            learnt = _inside(starts, rendered.answers)
        elif single_turn:
            question = render(turns[:1], images=0, image_tokens=0, is_open=True).text
            count = len(self._tokenizer.encode(question, add_special_tokens=False).ids)
            learnt = np.arange(len(tokens)) >= count
        else:
            learnt = ~_inside(starts, rendered.users)
        return Encoded(tokens, np.where(learnt, tokens, IGNORED).astype(np.int32))

    def decode(self, tokens: Sequence[int]) -> str:
        """What was said: the text before the end of the turn, without special tokens."""
        kept = list(tokens)
        for end in (self.ids[END_OF_TURN], self.ids[EOS]):
            kept = kept[: kept.index(end)] if end in kept else kept
        return self._tokenizer.decode(kept, skip_special_tokens=True).strip()


def _inside(positions: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    """bool [L]: which of the positions lie in one of the spans."""
    found = np.zeros(len(positions), bool)
    for start, stop in spans:
        found |= (positions >= start) & (positions < stop)
    return found


def load(path: str | pathlib.Path, *, image_tokens: int) -> ChatTokenizer:
    """The tokenizer of a tokenizer.json, or of a folder that has one, such as that of a published Gemma.

    Raises:
      UserError: there is none, it is damaged, or it lacks a special token.
    """
    path = resources.find(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"config.data.tokenizer: {file} is absent, expected the tokenizer.json of a published Gemma or the one in "
            "assets/tokenizer: correct the path"
        )
    try:
        return ChatTokenizer(tokenizers.Tokenizer.from_file(str(file)), image_tokens=image_tokens)
    except Exception as error:  # the library's own exceptions have no common class
        raise UserError(f"{file} is no tokenizer for conversations: {error}: give another config.data.tokenizer") from (
            error
        )


def pad(encoded: Sequence[Encoded], length: int, *, pad_id: int) -> dict[str, np.ndarray]:
    """Conversations of at most `length` tokens -> tokens, labels int32 [B, L] and mask bool [B, L], padded behind."""
    shape = (len(encoded), length)
    tokens, labels = np.full(shape, pad_id, np.int32), np.full(shape, IGNORED, np.int32)
    mask = np.zeros(shape, bool)
    for row, one in enumerate(encoded):
        count = len(one.tokens)
        tokens[row, :count], labels[row, :count], mask[row, :count] = one.tokens, one.labels, True
    return {"tokens": tokens, "mask": mask, "labels": labels}
