"""Format "rlds": episodes of robots as TensorFlow Datasets stores them, such as those of Open X-Embodiment.

A data set is a folder NAME/VERSION with dataset_info.json, features.json and shards, which are TFRecord or ArrayRecord
files of `tf.train.Example`. A record is an episode: names such as `steps/observation/image` have the values of all
steps, one after the other. The action of a step follows its image.

Commands are numbers of every step, by default the feature `action`. They are scaled from the smallest and largest value
in the data set to [-1, 1], and so all records are read once before any image is decoded.

Source: tensorflow/datasets 4.9, `core/example_serializer.py`; https://github.com/google-research/rlds.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jworld.data import examples, record_files
from jworld.data.inputs import commands, items, rlds_features, stored_images
from jworld.data.inputs.base import Format
from jworld.utils.errors import UserError, one_line

INFO = "dataset_info.json"
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
#: Splits of a data set -> split of the records. "test" is held out only in data sets without the others.
_SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "val"}
_FIX = "download the data set again"


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A file of a split, and the number of its records."""

    path: pathlib.Path
    split: str
    name: str
    records: int


@dataclasses.dataclass(frozen=True)
class _Episodes:
    """Reader of episodes: camera, caption, numbers of a command by feature, and frame rate."""

    camera: str
    caption: str
    sizes: Mapping[str, int]
    fps: float

    @property
    def camera_key(self) -> str:
        """The name of the images in a record, one per step."""
        return f"{rlds_features.STEPS}/{self.camera}"

    def text(self, episode: examples.Example) -> str:
        """Return the first text of an episode that is not empty; "" without one."""
        return next(filter(None, episode.texts(self.caption)), "") if self.caption else ""

    def numbers(self, episode: examples.Example, steps: int) -> np.ndarray:
        """Return the numbers of every step, float64 [T, N]; a ValueError if their count does not fit.

        The last step has those of the one before: no image follows it, and many data sets store zeros there.
        """
        columns = []
        for name, size in self.sizes.items():
            values = episode.numbers(f"{rlds_features.STEPS}/{name}")
            if len(values) != steps * size:
                raise ValueError(f"{name!r} has {len(values):,} numbers, expected {size} for each of {steps} steps")
            columns.append(values.reshape(steps, size))
        numbers = np.concatenate(columns, axis=1)
        if steps > 1:
            numbers[-1] = numbers[-2]
        return numbers


@dataclasses.dataclass(frozen=True)
class _Found:
    """An episode, which lies at `place` in its file, and why it cannot be used."""

    shard: _Shard
    number: int
    place: int
    caption: str = ""
    problem: str | None = None

    @property
    def name(self) -> str:
        return f"{self.shard.name}/{self.number:06d}"


def list_items(path: pathlib.Path, options: items.ListOptions) -> items.Listing:
    """List the episodes of a data set; names are SPLIT-SHARD/RECORD."""
    folder = _find(path)
    features = rlds_features.read(folder)
    shards, notes = _shards(folder)
    camera = features.camera(options.camera)
    key, names, sizes, columns = _choose(features, options.commands)
    episodes = _Episodes(camera, features.caption(), sizes, options.untimed_fps(path))
    found: list[_Found] = []
    low, high = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    for shard in shards:
        for episode, values in _read_shard(shard, episodes):
            found.append(episode)
            if len(values):
                low, high = np.minimum(low, values.min(axis=0)), np.maximum(high, values.max(axis=0))
    chosen: commands.Commands | None = None
    if names:
        picked = tuple(names[column] for column in columns)
        ends = (tuple(end[list(columns)].tolist()) for end in (low, high))
        chosen = commands.Commands(key, columns, picked, *ends)
    listed = [_item(episode, episodes, chosen) for episode in found]
    facts: dict[str, Any] = {"camera": camera, "frames_fps": episodes.fps}
    if chosen is not None:
        facts["commands"] = chosen.facts()
    listing = items.finish(listed, notes, source=folder, options=options)
    return dataclasses.replace(listing, facts=facts)


def _find(path: pathlib.Path) -> pathlib.Path:
    """Return the folder of a version: the given one, or the only one below it."""
    if (path / INFO).exists() or not path.is_dir():
        return path
    found = sorted(file.parent for file in path.rglob(INFO))
    if len(found) != 1:
        several = f" and {found[-1]}" if found else ""
        raise UserError(
            f"{path} holds {len(found)} files {INFO}{several and f', such as those in {found[0]}{several}'}, expected "
            "one: give the folder NAME/VERSION of one data set"
        )
    return found[0]


def _shards(folder: pathlib.Path) -> tuple[list[_Shard], list[str]]:
    """Return the files that dataset_info.json names, and notes about splits and files that are not read."""
    path = folder / INFO
    facts = items.read_json(path)
    facts = facts if isinstance(facts, dict) else {}
    name, form, splits = facts.get("name"), facts.get("fileFormat", "tfrecord"), facts.get("splits")
    if form not in record_files.FORMATS or not isinstance(name, str) or not isinstance(splits, list):
        raise UserError(
            f"{path}: fileFormat is {form!r:.40} and name {name!r:.60}, expected {' or '.join(record_files.FORMATS)}, "
            f"a text, and a list under 'splits': {_FIX}, or convert it with tfds convert_format"
        )
    known = {str(entry.get("name")): entry for entry in splits if isinstance(entry, dict)}
    shards: list[_Shard] = []
    notes = []
    for split, entry in known.items():
        target = _SPLITS.get(split)
        if target is None or (split == "test" and {"val", "validation"} & set(known)):
            notes.append(f"the split {split!r:.60} is ignored: a data set has the splits train and val")
            continue
        lengths = entry.get("shardLengths")
        listed = list(_files(path, name, form, split, entry, target))
        present = [shard for shard in listed if shard.path.exists()]
        shards += present
        if lengths and not present:
            raise UserError(f"{listed[0].path} is absent, and so are all files of the split {split!r}: {_FIX}")
        if len(present) < len(listed):
            notes.append(f"{len(listed) - len(present)} of {len(listed)} files of the split {split!r} are absent")
    if all(shard.split == "train" for shard in shards):
        shards = [dataclasses.replace(shard, split="") for shard in shards]
    return shards, notes


def _files(
    info: pathlib.Path, name: str, form: str, split: str, entry: Mapping[str, Any], target: str
) -> Iterator[_Shard]:
    """Yield the files of a split, from the pattern of their names in dataset_info.json."""
    lengths, template = entry.get("shardLengths"), entry.get("filepathTemplate", _TEMPLATE)
    try:
        # 64-bit numbers are texts in the JSON form of protocol buffers.
        counts = [int(length) for length in lengths] if isinstance(lengths, list) else None
    except (TypeError, ValueError):
        counts = None
    if counts is None or not isinstance(template, str):
        raise UserError(
            f"{info}: the split {split!r} has shardLengths {lengths!r:.60} and filepathTemplate {template!r:.60}, "
            f"expected a list of numbers and a text: {_FIX}"
        )
    for index, count in enumerate(counts):
        part = f"{index:05d}-of-{len(counts):05d}"
        file = template or _TEMPLATE
        for key, value in (("DATASET", name), ("SPLIT", split), ("FILEFORMAT", form), ("SHARD_X_OF_Y", part)):
            file = file.replace(f"{{{key}}}", value)
        if "{" in file or "/" in file or "\0" in file:
            raise UserError(f"{info}: filepathTemplate is {template!r:.80}, expected such as {_TEMPLATE}: correct it")
        if count:
            yield _Shard(info.parent / file, target, f"{split}-{index:05d}", count)


def _choose(
    features: rlds_features.Features, wanted: str
) -> tuple[str, Sequence[str], Mapping[str, int], tuple[int, ...]]:
    """Return what `--commands KEY:NAME,...` selects: feature, names and sizes of its numbers, and chosen places.

    The names of a feature with parts are PART, or PART/NUMBER of a vector.
    """
    key, _, chosen = wanted.partition(":")
    is_there = any(name.partition("/")[0] == rlds_features.ACTION for name in features.steps)
    if not key and not is_there:
        return "", (), {}, ()
    key = key or rlds_features.ACTION
    sizes = features.vectors(key)
    names: list[str] = []
    for name, size in sizes.items():
        part = name.removeprefix(key).removeprefix("/")
        is_number = features.steps[name].shape == ()
        names += [part or "0"] if is_number else [f"{part}/{i}" if part else str(i) for i in range(size)]
    return key, names, sizes, commands.pick(key, names, chosen, where=features.path.parent)


def _read_shard(shard: _Shard, episodes: _Episodes) -> Iterator[tuple[_Found, np.ndarray]]:
    """Yield the episodes of a file and the numbers of their steps [T, N]; none of an episode that cannot be used."""
    number = 0
    for place, content in record_files.records(shard.path):
        found, values = _Found(shard, number, place), np.zeros((0, 0))
        try:
            episode = examples.Example(content)
            steps = episode.count_images(episodes.camera_key)
            found = dataclasses.replace(found, caption=episodes.text(episode))
            if episodes.sizes:
                values = episodes.numbers(episode, steps)
                if not np.isfinite(values).all():
                    raise ValueError("its commands are not finite")
        except ValueError as error:
            found, values = dataclasses.replace(found, problem=str(_broken(shard.path, number, error))), values[:0]
        yield found, values
        number += 1
    if number != shard.records:
        raise UserError(
            f"{shard.path} has {number:,} records, expected {shard.records:,} by {INFO}: download the file again"
        )


def _broken(path: pathlib.Path, number: int, error: Exception) -> UserError:
    return UserError(f"{path}, record {number}: {one_line(error)}: {_FIX}")


def _item(found: _Found, episodes: _Episodes, chosen: commands.Commands | None) -> items.Item:
    return items.Item(
        name=found.name,
        video=found.shard.path,
        caption=found.caption,
        split=found.shard.split or None,
        commands=() if chosen is None else chosen.names,
        problem=found.problem,
        open_video=functools.partial(_open, found, episodes),
        read_tracks=functools.partial(_read_tracks, found, episodes, chosen),
    )


def _open(found: _Found, episodes: _Episodes) -> stored_images.EncodedImages:
    path, number = found.shard.path, found.number
    try:
        images = examples.Example(record_files.record(path, found.place)).images(episodes.camera_key)
    except ValueError as error:
        raise _broken(path, number, error) from error
    return stored_images.EncodedImages(path, images, fps=episodes.fps, name=f"record {number}")


def _read_tracks(found: _Found, episodes: _Episodes, chosen: commands.Commands | None, frames: int) -> items.Tracks:
    path, number = found.shard.path, found.number
    if chosen is None:
        return items.Tracks()
    try:
        values = episodes.numbers(examples.Example(record_files.record(path, found.place)), frames)
    except ValueError as error:
        raise _broken(path, number, error) from error
    return items.Tracks(commands=commands.check(values, chosen, where=path, episode=f"record {number}"))


FORMAT = Format(
    name="rlds",
    help="episodes (RLDS) as TensorFlow Datasets stores them, such as those of Open X-Embodiment: a folder "
    "NAME/VERSION with features.json; see --camera and --commands",
    list_items=list_items,
    options=("frames_fps", "camera", "commands"),
    untimed=True,
)
