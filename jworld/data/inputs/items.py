"""Items of a video data set before anything is decoded, and the data that accompanies their frames."""

import collections
import dataclasses
import hashlib
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jworld.cameras import actions, poses
from jworld.data import records
from jworld.data.inputs.video import Video
from jworld.utils import files
from jworld.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class Controls:
    """One word per frame, as recorded.

    Formats with cameras have action names, which `actions.label_from_name` reads: "forward+yaw_left", "none". Formats
    without cameras have tokens of their own, `Format.control_tokens`.
    """

    words: tuple[str, ...]

    def take(self, frames: np.ndarray) -> "Controls":
        """Return the words of the frames with these numbers."""
        return Controls(tuple(self.words[frame] for frame in frames))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tracks:
    """Data that accompanies the T frames of a video, each None if the format has none.

    Attributes:
      w2c: float64 [T, 4, 4], OpenCV world-to-camera.
      intrinsics: float64 [T, 3, 3], divided by the image size.
      controls: what was pressed, one word per frame.
      hand: float64 [T, 7], state of a robot arm: x, y, z, roll, pitch, yaw, gripper.
      commands: float64 [T, A], what a robot receives at each frame, scaled for training.
    """

    w2c: np.ndarray | None = None
    intrinsics: np.ndarray | None = None
    controls: Controls | None = None
    hand: np.ndarray | None = None
    commands: np.ndarray | None = None


def no_tracks(frames: int) -> Tracks:
    """Return the tracks of a video without cameras and controls."""
    return Tracks()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """One video of a data set, not yet opened.

    Attributes:
      name: unique within the data set, and independent of the folder's location.
      video: a file that ffmpeg decodes, or a folder of images.
      caption: its text.
      split: "train" or "val"; None if the format has no splits.
      cameras, controls, hand: the files that `read_tracks` opens.
      commands: names of the numbers of a command; () if the video has none.
      frames_fps: frames per second of a folder of images.
      open_video: opens the item if it is a part of the file `video`.
      first_frame: number of the first frame to use.
      moves_back: begin earlier than `first_frame` if no clip fits after it, as late as one fits.
      read_tracks: number of frames of the video -> its tracks; a `UserError` if the files disagree with the video.
      problem: why the item cannot be used, found while listing; opening it raises this sentence as `UserError`.
      views: one item per camera, in the order of a record, if several synchronized cameras recorded it; the first
        camera is that of `video`, and the tracks are the item's own.
    """

    name: str
    video: pathlib.Path
    caption: str = ""
    split: str | None = None
    cameras: pathlib.Path | None = None
    controls: pathlib.Path | None = None
    hand: pathlib.Path | None = None
    commands: tuple[str, ...] = ()
    frames_fps: float | None = None
    open_video: Callable[[], Video] | None = None
    first_frame: int = 0
    moves_back: bool = False
    read_tracks: Callable[[int], Tracks] = no_tracks
    problem: str | None = None
    views: tuple["Item", ...] = ()


@dataclasses.dataclass(frozen=True)
class Listing:
    """Items sorted by name, notes about what was ignored, and facts for the manifest of the records."""

    items: list[Item]
    notes: list[str] = dataclasses.field(default_factory=list)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Options for listing a data set.

    Attributes:
      require_captions: an item without a caption has a problem; otherwise its caption is empty.
      prompt: caption of the items without one.
      frames_fps: frames per second of folders of images, and of formats without times.
      frames_size: width and height of the frames, in formats that do not store them; None for the format's default.
      root: base of the relative paths in an index file; None for the folder of the index file.
      stored_text: captions are encoded already, in a file that the user names.
      camera: which camera to use, in formats with several; "" if there is only one. See `views.parse` for several.
      commands: which recorded numbers steer the model, in formats with commands; "" for the format's default.
    """

    require_captions: bool = True
    prompt: str = ""
    frames_fps: float | None = None
    frames_size: tuple[int, int] | None = None
    root: pathlib.Path | None = None
    stored_text: bool = False
    camera: str = ""
    commands: str = ""

    def untimed_fps(self, path: pathlib.Path) -> float:
        """Return the rate of frames without times; a `UserError` if it is not given."""
        if self.frames_fps is None:
            raise UserError(f"{path}: the frames have no times: give --frames-fps, or --fps")
        return self.frames_fps


def with_splits(items: Iterable[Item], val_share: float) -> list[Item]:
    """Assign a split by a hash of the name to items without one: `val_share` of them become "val"."""
    if not 0 <= val_share <= 1:
        raise UserError(f"share of validation clips is {val_share}, expected a number between 0 and 1")
    drawn = {True: "val", False: "train"}
    return [
        item if item.split else dataclasses.replace(item, split=drawn[_hash(item.name) < val_share * 2**64])
        for item in items
    ]


def held_out_notes(items: Sequence[Item], split: Sequence[Item]) -> list[str]:
    """Return a note if no item is held out; `split` are the items after `with_splits`."""
    if not items or any(item.split != "train" for item in split):
        return []
    drawn = sorted(_hash(item.name) / 2**64 for item in items if item.split is None)
    advice = "mark some of them as 'val'"
    if len(drawn) == 1:
        advice = "add videos"
    elif drawn:
        # Rounded up, so that the first item is below it.
        advice = f"give --val-share {math.ceil(100 * drawn[0] + 1e-9) / 100:g} or more"
    return [f"no video is held out, so a model that trains on this set cannot be measured: {advice}"]


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def finish(items: Iterable[Item], notes: Sequence[str], *, source: pathlib.Path, options: ListOptions) -> Listing:
    """Sort items by name and mark wrong names, splits and captions as problems; no items at all is a `UserError`.

    A video that is listed several times gets the names NAME, NAME#2, NAME#3.
    """
    ordered = sorted(_numbered(items), key=lambda item: (item.name, str(item.video), item.first_frame))
    if not ordered:
        raise UserError(f"{source} holds no videos, expected at least one: give another folder or --format")
    places = collections.defaultdict(list)
    for item in ordered:
        places[item.name].append(item.video)
    checked = []
    for item in ordered:
        problem = item.problem
        if problem is None and len(places[item.name]) > 1:
            found = ", ".join(map(str, places[item.name]))
            problem = f"{len(places[item.name])} videos have the name {item.name!r} ({found}): rename all but one"
        if problem is None and item.split not in (None, *records.SPLITS):
            problem = f"{item.video}: split is {item.split!r}, expected one of {', '.join(records.SPLITS)}: correct it"
        caption = item.caption.strip() or options.prompt.strip()
        if problem is None and options.require_captions and not caption:
            problem = (
                f"{item.video} has no caption: write one, give --prompt TEXT for all videos without a caption, or "
                "--allow-missing-captions to use an empty text"
            )
        checked.append(dataclasses.replace(item, caption=caption, problem=problem))
    return Listing(checked, list(notes))


def _numbered(items: Iterable[Item]) -> list[Item]:
    """Return the items with a number in the names of those that are listed again with the same video."""
    seen: collections.Counter[tuple[str, pathlib.Path]] = collections.Counter()
    numbered = []
    for item in items:
        key = item.name, item.video
        seen[key] += 1
        again = seen[key] > 1 and item.problem is None
        numbered.append(dataclasses.replace(item, name=f"{item.name}#{seen[key]}") if again else item)
    return numbered


def check_cameras(w2c: Any, intrinsics: Any, *, frames: int, path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Convert matrices read from the file `path` to float64 [T, 4, 4] and [T, 3, 3], where T is `frames`.

    Raises:
      UserError: a number is not finite, w2c is not rigid, or a focal length is not positive.
    """
    checked = []
    for name, value, size in (("w2c", w2c, 4), ("intrinsics", intrinsics, 3)):
        try:
            array = np.asarray(value, np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{path}: {name} are not matrices of numbers ({error}): correct the file") from error
        if array.ndim and len(array) != frames:
            raise count_error(path, "poses", len(array), frames)
        if array.shape != (frames, size, size):
            raise UserError(f"{path}: {name} have shape {list(array.shape)}, expected {[frames, size, size]}")
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {name} hold numbers that are not finite: estimate the cameras again")
        checked.append(array)
    wrong = ~poses.are_rigid(checked[0])
    if wrong.any():
        raise UserError(
            f"{path}: w2c of frame {wrong.argmax()} is not rigid (a rotation and a translation, last row 0 0 0 1): "
            "write world-to-camera matrices without scale or mirroring"
        )
    focal = checked[1][:, [0, 1], [0, 1]]
    if (focal <= 0).any():
        raise UserError(f"{path}: focal length {focal.min():g} found, expected positive ones: correct the intrinsics")
    return checked[0], checked[1]


def check_directions(words: Any, *, frames: int, path: pathlib.Path) -> Controls:
    """Return action names as controls; a `UserError` unless there is one known name per frame."""
    if not isinstance(words, list):
        raise UserError(f"{path}: actions are a {type(words).__name__}, expected a list with one entry per frame")
    if len(words) != frames:
        raise count_error(path, "actions", len(words), frames)
    for frame, word in enumerate(words):
        try:
            actions.label_from_name(word)
        except (UserError, AttributeError) as error:
            raise UserError(f"{path}: frame {frame}: action {word!r} is unknown ({error})") from error
    return Controls(tuple(words))


def count_error(path: pathlib.Path, what: str, found: int, frames: int) -> UserError:
    """Return the error of a file that does not have one entry per frame."""
    return UserError(
        f"{path} has {found} {what}, the video decodes to {frames} frames, expected one for each: make both from the "
        "same recording"
    )


def read_json(path: pathlib.Path) -> Any:
    """Return the value of a JSON file; a `UserError` if it is absent or malformed."""
    return files.read_json(path, None, fix="correct it or its path")


def read_text(path: pathlib.Path) -> str | None:
    """Return the text of a file, None if it is absent."""
    # Not `exists`, which is also false for a link that leads back to itself.
    if not os.path.lexists(path):
        return None
    return files.read_text(path, fix="save it as UTF-8")


def index_file(path: pathlib.Path) -> pathlib.Path:
    """Return `path` itself if it is a file, else its `index.json`."""
    return path / "index.json" if path.is_dir() else path


def entry_texts(entry: Any, keys: Sequence[str]) -> dict[str, str]:
    """Return the texts under these keys of one entry of an index, "" for those that are missing or no texts."""
    facts = entry if isinstance(entry, dict) else {}
    return {key: facts[key] if isinstance(facts.get(key), str) else "" for key in keys}


def find_wrong_text(entry: Any, keys: Sequence[str], where: str) -> str | None:
    """Return a sentence about the first key whose value is neither a text nor null; None if there is none."""
    facts = entry if isinstance(entry, dict) else {}
    for key in keys:
        if not isinstance(facts.get(key), str | None):
            return f"{where}: {key!r} is {facts[key]!r:.60}, expected a text: correct it"
    return None


def unread_keys(entries: Iterable[Any], known: Sequence[str], index: pathlib.Path) -> list[str]:
    """Return a note about keys of the entries of an index that nothing reads; [] if there are none."""
    found = dict.fromkeys(key for entry in entries if isinstance(entry, dict) for key in entry if key not in known)
    if not found:
        return []
    shown = ", ".join(map(repr, list(found)[:5])) + (", ..." if len(found) > 5 else "")
    return [f"{index}: the keys {shown} are not read; this format has {', '.join(known)}"]


def broken_entry(index: pathlib.Path, number: int, key: str) -> Item:
    """Return the item of an index entry that does not name its file."""
    return Item(
        name=f"entry_{number:06d}",
        video=index,
        problem=f"{index}: entry {number} has no text under the key {key!r}: add it or remove the entry",
    )


def name_of(path: str | pathlib.Path) -> str:
    """Return the item name of a video path: the path as given, without its suffix."""
    pure = pathlib.PurePosixPath(path)
    return pure.with_suffix("").as_posix().lstrip("/") if pure.name else str(path)
