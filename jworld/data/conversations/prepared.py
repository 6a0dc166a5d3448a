"""Prepared sets of conversations: checked once, measured in tokens, and split into training and held-out parts.

A set is a folder with these files. SPLIT.jsonl has one conversation per line. SPLIT.npy, int64 [N, 2], has the byte
offset of each line and the number of tokens of its conversation. unusable.txt lists the conversations that were left
out, with reasons. manifest.json describes the set. Images are not copied.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import itertools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.progress

from jworld.data import records
from jworld.data.conversations import captions, chat, chat_rows, crops, formats, image_files, remote
from jworld.data.records import content
from jworld.utils import checksums, indices, limits
from jworld.utils.errors import UserError

FORMAT, VERSION = "jworld-conversations", 1
UNUSABLE = "unusable.txt"
MORE_HELD_OUT = "raise config.data.conversations.val_share, and choose another config.data.records"
_CHUNK, _THREADS = 1024, 16


@dataclasses.dataclass(frozen=True)
class Identity:
    """Inputs on which the token counts of a set depend: hash of the tokenizer file, tokens per image, and crops."""

    tokenizer: str
    image_tokens: int
    pan: crops.PanAndScan | None = None

    @classmethod
    def from_manifest(cls, manifest: dict[str, Any]) -> "Identity":
        """Return the identity that a manifest records."""
        pan = manifest.get("pan")
        found = None if pan is None else crops.PanAndScan(**pan)
        return cls(manifest.get("tokenizer", ""), manifest.get("image_tokens", 0), found)


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
    """Check the conversations in `rows`, write the usable ones into the folder, and return the manifest.

    Images with relative paths must already be in the folder. A conversation with more than `images` images is not
    usable.

    Raises:
      UserError: no conversation is for training.
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
        tracked = rich.progress.track(rows, "checking the conversations", console=console)
        for chunk in _chunks(tracked):
            checked = pool.map(lambda row: check(row, directory, images=images), chunk)
            for row, problem in checked:
                length, problem = (0, problem) if problem else _length(tokenizer, row, directory, identity.pan)
                if problem:
                    unusable.write(f"{row.name}: {problem}\n")
                    reasons.append(f"{row.name}: {problem}")
                    continue
                split = row.split or _split(row, val_share)
                index[split].append((outputs[split].tell(), length))
                outputs[split].write(json.dumps(_encode(row)).encode() + b"\n")
                counts[split] += 1
    if not counts["train"]:
        first = f"; {len(reasons)} cannot be used, first {reasons[0]}" if reasons else ""
        raise UserError(
            f"config.data.conversations: none of {sum(counts.values())} usable ones is in split 'train'{first}: give "
            "more of them, or another config.data.conversations.val_share"
        )
    for split in records.SPLITS:
        np.save(directory / f"{split}.npy", np.array(index[split], np.int64).reshape(-1, 2))
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        **dataclasses.asdict(identity),
        "source": source,
        "splits": {split: counts[split] for split in records.SPLITS},
        "unusable": len(reasons),
        "first_unusable": reasons[:3],
    }
    checksums.write_json(directory / records.MANIFEST, manifest)
    return manifest


def _chunks(rows: Iterable[formats.Conversation]) -> Iterator[list[formats.Conversation]]:
    iterator = iter(rows)
    while chunk := list(itertools.islice(iterator, _CHUNK)):
        yield chunk


def check(row: formats.Conversation, root: pathlib.Path, *, images: int) -> tuple[formats.Conversation, str]:
    """Return a conversation with its remote images downloaded, and why it cannot be used, "" if it can."""
    if problem := row.problem or chat_rows.order_problem(row.turns):
        return row, problem
    if len(row.places) > images:
        return row, f"it has {len(row.places)} images, config.data.clip.images is {images}"
    try:
        row = dataclasses.replace(row, places=tuple(_local(place, root) for place in row.places))
        for place in row.places:
            image_files.check(place, root)
    except (ValueError, OSError) as error:
        return row, str(error)
    return row, ""


def _local(place: image_files.ImageSource, root: pathlib.Path) -> image_files.ImageSource:
    """Return the location of an image on disk; one that is named by a URL is downloaded into the set."""
    if "url" not in place:
        return place
    name = hashlib.sha256(place["url"].encode()).hexdigest()
    file = pathlib.Path(captions.DOWNLOADS, name[:2], name[2:])
    remote.fetch(place["url"], root / file, limit=limits.IMAGE_BYTES)
    return {**place, "file": str(file)}


def _length(
    tokenizer: chat.ChatTokenizer, row: formats.Conversation, root: pathlib.Path, pan: crops.PanAndScan | None
) -> tuple[int, str]:
    try:
        sizes = [] if pan is None else [image_files.read(place, root).size for place in row.places]
        counts = [] if pan is None else [len(pan.boxes(*size)) for size in sizes]
        return len(tokenizer.encode(row.turns, images=len(row.places), crops=counts).tokens), ""
    except ValueError as error:
        return 0, str(error)


def _split(row: formats.Conversation, val_share: float) -> str:
    """Draw the split by a hash of the image's location, so that all conversations about one image share a split.

    Without an image the hash is that of the text.
    """
    own = image_files.describe(row.places[0]) if row.places else " ".join(turn.text for turn in row.turns)
    digest = hashlib.sha256(own.encode()).digest()
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
    """Read the manifest of a set; a `UserError` if there is none."""
    path = directory / records.MANIFEST
    manifest = checksums.read_json(path, fix="correct config.data.records, or train to create it")
    found = manifest.get("format"), manifest.get("version")
    if found != (FORMAT, VERSION):
        raise UserError(
            f"{path}: format is {found[0]!r} {found[1]!r}, expected {FORMAT!r} {VERSION}: remove the folder, or give "
            "another config.data.records"
        )
    return manifest


class Source:
    """Random access to the conversations of a split that have at most `max_tokens` tokens.

    Attributes:
      lengths: int64 [N], tokens of each conversation.
      too_long: number of conversations that were left out.
    """

    def __init__(self, directory: pathlib.Path, split: str, identity: Identity, *, max_tokens: int) -> None:
        self.directory = directory
        self._path = directory / f"{split}.jsonl"
        manifest = read_manifest(directory)
        stored = Identity.from_manifest(manifest)
        if stored != identity:
            raise UserError(
                f"{directory} was made with another tokenizer, another data.clip.pan_and_scan, or for images of "
                f"{stored.image_tokens} tokens, the model has {identity.image_tokens}: remove the folder, or give "
                "another config.data.records"
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
        if not len(index):
            raise UserError(f"{directory}: split '{split}' has no conversations: {MORE_HELD_OUT}")
        if not len(self):
            raise UserError(
                f"{directory}: all {self.too_long} conversations of split '{split}' have more than {max_tokens} tokens"
                ": raise config.data.clip.lengths"
            )

    def identity(self) -> str:
        """Return the identity of the set, from its manifest, the index of this split and some of its conversations."""
        picked = indices.evenly(len(self), content.CHECKED)
        rows = (json.dumps(_encode(self[int(i)])).encode() for i in picked)
        return content.combined(read_manifest(self.directory), [self._offsets.tobytes(), *rows])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, number: int) -> formats.Conversation:
        with self._path.open("rb") as file:
            file.seek(int(self._offsets[number]))
            return _decode(file.readline())


def make(directory: pathlib.Path, fill: Callable[[pathlib.Path], dict[str, Any]]) -> dict[str, Any]:
    """Create a set atomically, in a hidden folder that is renamed at the end; return its manifest.

    `fill(folder)` writes the files and returns the manifest.
    """
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
    """Return lines for the user about the numbers of conversations."""
    lines = [f"{manifest['splits']['train']} conversations to train on, {manifest['splits']['val']} held out"]
    if not manifest["splits"]["val"]:
        lines.append(f"nothing is held out, so the trained model cannot be measured: {MORE_HELD_OUT}")
    if manifest["unusable"]:
        lines.append(f"{manifest['unusable']} cannot be used, see {UNUSABLE}; first: {manifest['first_unusable'][0]}")
    return lines
