"""A set of conversations, looked through once: which can be used, how long they are, what is held out.

DIR/manifest.json; per split NAME.jsonl, a conversation a line, and NAME.npy, int64 [N, 2]: where each line begins and
how many tokens its conversation has; unusable.txt names the others with the reason. Pictures stay where they are.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.progress

from jworld.data import records
from jworld.data.conversations import chat, formats, image_files
from jworld.utils import files
from jworld.utils.errors import UserError

FORMAT, VERSION = "jworld-conversations", 1
UNUSABLE = "unusable.txt"
_CHUNK, _THREADS = 1024, 16


@dataclasses.dataclass(frozen=True)
class Identity:
    """What the lengths of a set depend on: the hash of the tokenizer's file and the tokens of an image."""

    tokenizer: str
    image_tokens: int


def file_hash(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write(
    directory: pathlib.Path,
    rows: Iterable[formats.Conversation],
    tokenizer: chat.ChatTokenizer,
    identity: Identity,
    *,
    source: dict[str, Any],
    val_share: float,
    images: int,
    console: rich.console.Console,
) -> dict[str, Any]:
    """Look through the conversations of `rows` and write what is usable into the folder; -> its manifest.

    Pictures that rows name relatively lie in the folder already. At most `images` of them belong to a conversation.

    Raises:
      UserError: a split gets no conversation.
    """
    counts: collections.Counter[str] = collections.Counter()
    reasons: list[str] = []
    index: dict[str, list[tuple[int, int]]] = {split: [] for split in records.SPLITS}
    with (
        concurrent.futures.ThreadPoolExecutor(_THREADS) as pool,
        (directory / UNUSABLE).open("w") as unusable,
        (directory / "train.jsonl").open("wb") as train,
        (directory / "val.jsonl").open("wb") as val,
    ):
        outputs = {"train": train, "val": val}
        tracked = rich.progress.track(rows, "looking through the conversations", console=console)
        for chunk in _chunks(tracked):
            problems = pool.map(lambda row: find_problem(row, directory, images=images), chunk)
            for row, problem in zip(chunk, problems, strict=True):
                length, problem = _length(tokenizer, row) if not problem else (0, problem)
                if problem:
                    unusable.write(f"{row.name}: {problem}\n")
                    reasons.append(f"{row.name}: {problem}")
                    continue
                split = row.split or _split(row, val_share)
                index[split].append((outputs[split].tell(), length))
                outputs[split].write(json.dumps(_encode(row)).encode() + b"\n")
                counts[split] += 1
    for split in records.SPLITS:
        if not counts[split]:
            first = f"; {len(reasons)} cannot be used, the first is {reasons[0]}" if reasons else ""
            raise UserError(
                f"config.data.conversations: none of {sum(counts.values())} usable ones is of split '{split}'{first}: "
                "give more of them, or another config.data.conversations.val_share"
            )
        np.save(directory / f"{split}.npy", np.array(index[split], np.int64))
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **dataclasses.asdict(identity),
        "source": source,
        "splits": dict(counts),
        "unusable": len(reasons),
        "first_unusable": reasons[:3],
    }
    files.write_json(directory / records.MANIFEST, manifest)
    return manifest


def _chunks(rows: Iterable[formats.Conversation]) -> Iterator[list[formats.Conversation]]:
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, _CHUNK)):
        yield chunk


def find_problem(row: formats.Conversation, root: pathlib.Path, *, images: int) -> str:
    """Why a conversation cannot be learnt from; "" where it can."""
    if row.problem:
        return row.problem
    if not row.turns or row.turns[0].role != "user" or all(turn.role == "user" for turn in row.turns):
        return "it does not go from a user's turn to an answer"
    if not 1 <= len(row.places) <= images:
        return f"it has {len(row.places)} pictures, config.data.clip.images is {images}"
    for place in row.places:
        try:
            image_files.check(place, root)
        except ValueError as error:
            return str(error)
    return ""


def _length(tokenizer: chat.ChatTokenizer, row: formats.Conversation) -> tuple[int, str]:
    try:
        return len(tokenizer.encode(row.turns, images=len(row.places)).tokens), ""
    except ValueError as error:
        return 0, str(error)


def _split(row: formats.Conversation, val_share: float) -> str:
    """By the picture: what is said of it elsewhere belongs to the same split."""
    digest = hashlib.sha256(image_files.describe(row.places[0]).encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") < val_share * 2**64 else "train"


def _encode(row: formats.Conversation) -> dict[str, Any]:
    turns = [[turn.role, turn.text] for turn in row.turns]
    return {"name": row.name, "turns": turns, "places": list(row.places), "single_turn": row.single_turn}


def _decode(line: bytes) -> formats.Conversation:
    value = json.loads(line)
    turns = tuple(chat.Turn(role, text) for role, text in value["turns"])
    return formats.Conversation(
        name=value["name"], turns=turns, places=tuple(value["places"]), single_turn=value["single_turn"]
    )


def read_manifest(directory: pathlib.Path) -> dict[str, Any]:
    """The manifest of a set; a `UserError` where there is none."""
    path = directory / records.MANIFEST
    try:
        manifest = json.loads(path.read_text())
        found = manifest["format"], manifest["version"]
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist: correct config.data.records, or train to make it") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} describes no conversations: give another config.data.records") from error
    if found != (FORMAT, VERSION):
        raise UserError(
            f"{path}: format is {found[0]!r} {found[1]!r}, expected {FORMAT!r} {VERSION}: remove the folder, or give "
            "another config.data.records"
        )
    return manifest


class Source:
    """Random access to the conversations of a split; `lengths` int64 [N] are their tokens.

    Those of more than `max_tokens` tokens are left out; `too_long` counts them.
    """

    def __init__(self, directory: pathlib.Path, split: str, identity: Identity, *, max_tokens: int) -> None:
        self.directory = directory
        self._path = directory / f"{split}.jsonl"
        manifest = read_manifest(directory)
        known = Identity(manifest.get("tokenizer", ""), manifest.get("image_tokens", 0))
        if known != identity:
            raise UserError(
                f"{directory} was made with another tokenizer or for images of {known.image_tokens} tokens, the model "
                f"has {identity.image_tokens}: remove the folder, or give another config.data.records"
            )
        try:
            index = np.load(directory / f"{split}.npy")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{directory / split}.npy is damaged ({error}): remove {directory} and train again"
            ) from error
        fits = index[:, 1] <= max_tokens
        self._offsets, self.lengths = index[fits, 0], index[fits, 1]
        self.too_long = int((~fits).sum())
        if not len(self):
            raise UserError(
                f"{directory}: all {self.too_long} conversations of split '{split}' have more than {max_tokens} tokens"
                ": raise config.data.clip.lengths"
            )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> formats.Conversation:
        with self._path.open("rb") as file:
            file.seek(int(self._offsets[number]))
            return _decode(file.readline())


def make(directory: pathlib.Path, fill: Any) -> dict[str, Any]:
    """Make a set in a hidden folder that gets its name at the end; `fill(folder)` writes it and gives the manifest."""
    partial = directory.with_name(f".{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        manifest = fill(partial)
        partial.rename(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def summary(manifest: dict[str, Any]) -> Sequence[str]:
    """What was found, in lines for people."""
    lines = [f"{manifest['splits']['train']} conversations to train on, {manifest['splits']['val']} held out"]
    if manifest["unusable"]:
        lines.append(
            f"{manifest['unusable']} cannot be used, see {UNUSABLE}; the first: {manifest['first_unusable'][0]}"
        )
    return lines
