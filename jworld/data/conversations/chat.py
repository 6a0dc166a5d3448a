"""Tokenization of conversations in Gemma's chat format, with image spans and labels.

A conversation is `<bos>`, then for every turn `<start_of_turn>ROLE\n TEXT <end_of_turn>\n`. An open prompt ends with
`<start_of_turn>model\n`. A system turn has no tokens of its own: its text and an empty line precede the first user's
text, as in Gemma's chat template. An image is `\n\n<start_of_image>`, a fixed number of `<image_soft_token>`,
`<end_of_image>\n\n` (transformers, processing_gemma3.py). It replaces the placeholder `PLACE` in a user's text; without
placeholders, all images precede the first user's text. The model inserts the world tokens and their brackets after
`<bos>`.

Labels are the tokens at the same positions, `IGNORED` where there is no loss; the loss shifts them.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import tokenizers

from jworld.utils import hub_folders, pretrained
from jworld.utils.errors import UserError

#: Files that hold a tokenizer, in the order in which they are looked for in a folder.
FILES = ("tokenizer.json", "tokenizer.model")
IGNORED = -100

PAD, EOS, BOS = "<pad>", "<eos>", "<bos>"
START_OF_TURN, END_OF_TURN = "<start_of_turn>", "<end_of_turn>"
START_OF_IMAGE, IMAGE, END_OF_IMAGE = "<start_of_image>", "<image_soft_token>", "<end_of_image>"
START_OF_WORLD, END_OF_WORLD = "<start_of_world>", "<end_of_world>"
SPECIAL = (PAD, EOS, BOS, START_OF_TURN, END_OF_TURN, START_OF_IMAGE, IMAGE, END_OF_IMAGE)
WORLD = (START_OF_WORLD, END_OF_WORLD)

#: Placeholder of an image in a user's text.
PLACE = "<image>"

Role = Literal["system", "user", "model"]
Labels = Literal["answers", "original"]
Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Turn:
    """Text of one speaker; a user's text may have a `PLACE` for every image. Only the first turn may be a system's."""

    role: Role
    text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendered:
    """A conversation as text, with the character spans of user turns and answers.

    A user's span reaches from `<start_of_turn>` to `<end_of_turn>`, an answer's from its first letter to
    `<end_of_turn>`.
    """

    text: str
    users: tuple[Span, ...]
    answers: tuple[Span, ...]


def count_places(turns: Sequence[Turn]) -> int:
    """Return the number of places for images in a conversation."""
    return sum(turn.text.count(PLACE) for turn in turns)


def render(
    turns: Sequence[Turn], *, images: int, image_tokens: int, is_open: bool, crops: Sequence[int] = ()
) -> Rendered:
    """Render a conversation as text; an open one ends where the model's answer begins.

    `crops` is the number of crops of each image, none by default.
    """
    image = f"\n\n{START_OF_IMAGE}{IMAGE * image_tokens}{END_OF_IMAGE}\n\n"
    sequences = iter([_with_crops(image, count) for count in crops or [0] * images])
    text, pending = BOS, "" if count_places(turns) else "".join(sequences)
    users, answers = [], []
    for turn in turns:
        if turn.role == "system":
            pending = f"{turn.text}\n\n{pending}"
            continue
        begin = len(text)
        text += f"{START_OF_TURN}{turn.role}\n"
        if turn.role == "user":
            text, pending = text + pending, ""
        content = len(text)
        # The chat template trims every piece of text between images.
        first, *others = [piece.strip() for piece in turn.text.split(PLACE)]
        text += first + "".join(next(sequences) + piece for piece in others) + END_OF_TURN
        if turn.role == "user":
            users.append((begin, len(text)))
        else:
            answers.append((content, len(text)))
        text += "\n"
    if is_open:
        text += f"{START_OF_TURN}model\n"
    return Rendered(text=text, users=tuple(users), answers=tuple(answers))


def _with_crops(image: str, count: int) -> str:
    """Return the text of an image and its crops (transformers, processing_gemma3.py)."""
    if not count:
        return image
    crops = " ".join([image] * count)
    return f"Here is the original image {image} and here are some crops to help you see better {crops}"


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Tokens and labels of a conversation, int32 [L] each."""

    tokens: np.ndarray
    labels: np.ndarray


class ChatTokenizer:
    """Tokenizer of conversations with images.

    Attributes:
      image_tokens: tokens per image.
      ids: token ids of the special tokens, including the brackets of the world.
      vocab_size: size of the vocabulary, including the brackets.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, image_tokens: int) -> None:
        """Add missing world brackets at the end; a `ValueError` if another special token is missing."""
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
        crops: Sequence[int] = (),
        is_open: bool = False,
        labels: Labels = "answers",
        single_turn: bool = False,
    ) -> Encoded:
        """Tokenize a conversation.

        Args:
          crops: number of crops of each image, see `crops`; none by default.
          labels: "answers" for a loss on the model's answers and the `<end_of_turn>` after each; "original" for the
            labels of the original's collator (theworld/data.py): everything except the users' turns, or, in a
            `single_turn` conversation, everything after as many tokens as its question has without the image.

        Raises:
          ValueError: a turn contains a special token, or the places for images do not match their number.
        """
        for turn in turns:
            if found := [name for name in self.ids if name in turn.text]:
                raise ValueError(f"the text contains {found[0]}, which is a special token: remove it")
            if turn.role != "user" and PLACE in turn.text:
                raise ValueError(f"a turn of the {turn.role} contains {PLACE}, expected it in a user's turn only")
        if (places := count_places(turns)) not in (0, images):
            raise ValueError(f"its text has {places} {PLACE}, but it has {_numbered(images)}")
        rendered = render(turns, images=images, image_tokens=self.image_tokens, is_open=is_open, crops=crops)
        encoding = self._tokenizer.encode(rendered.text, add_special_tokens=False)
        tokens = np.array(encoding.ids, np.int32)
        starts = np.array([start for start, _ in encoding.offsets])
        if labels == "answers":
            has_loss = _inside(starts, rendered.answers)
        elif single_turn:
            asked = Turn("user", turns[0].text.replace(PLACE, ""))
            question = render([asked], images=0, image_tokens=0, is_open=True).text
            count = len(self._tokenizer.encode(question, add_special_tokens=False).ids)
            has_loss = np.arange(len(tokens)) >= count
        else:
            has_loss = ~_inside(starts, rendered.users)
        return Encoded(tokens, np.where(has_loss, tokens, IGNORED).astype(np.int32))

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text before the end of the turn, without special tokens."""
        answer = list(tokens)
        for end in (self.ids[END_OF_TURN], self.ids[EOS]):
            answer = answer[: answer.index(end)] if end in answer else answer
        return self._tokenizer.decode(answer, skip_special_tokens=True).strip()


def _numbered(images: int) -> str:
    return "1 image" if images == 1 else f"{images} images"


def _inside(positions: np.ndarray, spans: Sequence[Span]) -> np.ndarray:
    """Return bool [L]: whether each position lies in one of the spans."""
    found = np.zeros(len(positions), bool)
    for start, stop in spans:
        found |= (positions >= start) & (positions < stop)
    return found


def find_file(path: str | pathlib.Path) -> pathlib.Path:
    """Return the tokenizer file that `path` names: itself, or the first of `FILES` in a folder."""
    path = hub_folders.find(path, weights=False)
    if not path.is_dir():
        return path
    return next((path / name for name in FILES if (path / name).is_file()), path / FILES[0])


def load(path: str | pathlib.Path, *, image_tokens: int) -> ChatTokenizer:
    """Load a tokenizer file, or the one in a folder, such as a published Gemma.

    Raises:
      UserError: the file is absent or damaged, or lacks a special token.
    """
    file = find_file(path)
    if not file.is_file():
        raise UserError(
            f"config.data.tokenizer: {file} is absent, expected the tokenizer.json of a published Gemma or the one in "
            "assets/tokenizer: correct the path"
        )
    try:
        return ChatTokenizer(read(file), image_tokens=image_tokens)
    except UserError:
        raise
    except Exception as error:  # the library's own exceptions have no common class
        raise UserError(f"{file} is not a chat tokenizer: {error}: give another config.data.tokenizer") from error


def read(file: pathlib.Path) -> tokenizers.Tokenizer:
    """Read a tokenizer.json, or convert a tokenizer.model of SentencePiece with the config files next to it."""
    if file.suffix == ".model":
        tokenizer: tokenizers.Tokenizer = pretrained.load_tokenizer(file.parent).backend_tokenizer
        return tokenizer
    # Not AutoTokenizer, which returns the same tokens several seconds later.
    return tokenizers.Tokenizer.from_file(str(file))


def pad(encoded: Sequence[Encoded], length: int, *, pad_id: int) -> dict[str, np.ndarray]:
    """Pad conversations of at most `length` tokens at the end: tokens, labels int32 [B, L] and mask bool [B, L]."""
    shape = (len(encoded), length)
    tokens, labels = np.full(shape, pad_id, np.int32), np.full(shape, IGNORED, np.int32)
    mask = np.zeros(shape, bool)
    for row, one in enumerate(encoded):
        count = len(one.tokens)
        tokens[row, :count], labels[row, :count], mask[row, :count] = one.tokens, one.labels, True
    return {"tokens": tokens, "mask": mask, "labels": labels}
