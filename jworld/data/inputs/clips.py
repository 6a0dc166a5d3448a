"""Uniform clips: an item's video at one frame rate and one size, cut into pieces, with the cameras of its frames.

At most one clip's frames are in memory, besides the clip that the caller still holds.
"""

import contextlib
import dataclasses
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from jworld.data.inputs import fitting, items, video
from jworld.utils.errors import UserError

REMAINDERS = ("drop", "shift")
# 29.97 for 30: resampling would repeat one frame in a thousand.
SAME_RATE = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutConfig:
    """What every clip of a data set has in common.

    Attributes:
      fit: the model's image size and how frames reach it.
      fps: frame rate of the clips; None: each video keeps its own.
      frames: frames of a clip, a multiple of temporal_ratio and one more; None: one clip per video, as long as it goes
        (the whole video is then in memory).
      stride: frames from the start of one clip to the start of the next; None: `frames`. Less makes clips overlap.
      remainder: frames after the last whole clip: "drop" leaves them out, "shift" adds a clip that ends with the video
        and overlaps the one before.
      repeat_frames: a video with too few frames for `fps` shows some of them twice; otherwise it is refused.
      temporal_ratio: frames per latent of the autoencoder.
    """

    fit: fitting.Fit
    fps: float | None = None
    frames: int | None = None
    stride: int | None = None
    remainder: str = "drop"
    repeat_frames: bool = False
    temporal_ratio: int = 4

    def __post_init__(self) -> None:
        ratio = self.temporal_ratio
        if self.frames is not None and (self.frames < ratio + 1 or self.frames % ratio != 1 % ratio):
            raise UserError(
                f"a clip has {self.frames} frames, expected {ratio}k+1: give --frames {self._whole(self.frames)} or "
                f"{self._whole(self.frames) + ratio}"
            )
        if self.stride is not None and self.frames is None:
            raise UserError(f"stride is {self.stride} but a clip is a whole video: give --frames, too")
        if self.stride is not None and self.stride < 1:
            raise UserError(f"stride is {self.stride} frames, expected at least 1: change --stride")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise UserError(f"frame rate is {self.fps}, expected a positive number: change --fps")
        if self.remainder not in REMAINDERS:
            raise UserError(f"remainder is {self.remainder!r}, expected one of {', '.join(REMAINDERS)}")

    def manifest_entry(self) -> dict[str, Any]:
        """The settings as JSON."""
        return dataclasses.asdict(self)

    def length(self, available: int) -> int:
        """Frames of a clip of a video that has `available` frames at the clips' rate."""
        return self.frames if self.frames is not None else self._whole(available)

    def starts(self, available: int) -> list[int]:
        """Where the clips of such a video begin, in frames at the clips' rate; empty where it is too short."""
        length = self.length(available)
        starts = list(range(0, available - length + 1, self.stride or length))
        if self.remainder == "shift" and starts and self.frames is not None and starts[-1] + length < available:
            starts.append(available - length)
        return starts

    def _whole(self, frames: int) -> int:
        """The longest clip of at most so many frames, but at least one of two latents."""
        return max((frames - 1) // self.temporal_ratio, 1) * self.temporal_ratio + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """T uniform frames of one item.

    Attributes:
      name: `"<item>@<start>"`, unique within the data set.
      item: the item's name.
      start: the first frame's number at the clips' rate, counted from the item's first frame.
      split: "train" or "val".
      caption: the item's text.
      fps: frame rate.
      frames: uint8 [T, H, W, 3].
      w2c: float64 [T, 4, 4] OpenCV world-to-camera, in the item's own coordinates, or None.
      intrinsics: float64 [T, 3, 3] divided by the image size, corrected for the cut, or None.
      controls: what was pressed, one word per frame, or None.
      hand: float64 [T, 7] state of a robot arm's hand, or None.
    """

    name: str
    item: str
    start: int
    split: str
    caption: str
    fps: float
    frames: np.ndarray
    w2c: np.ndarray | None
    intrinsics: np.ndarray | None
    controls: items.Controls | None
    hand: np.ndarray | None


def read_clips(item: items.Item, config: CutConfig) -> Iterator[Clip]:
    """The clips of one item in order.

    A video file is decoded once before its first clip appears, so a file that is damaged, too short or at odds with its
    cameras raises its `UserError` before any clip; a picture of a folder is opened when its turn comes.
    """
    if item.problem is not None:
        raise UserError(item.problem)
    if item.split is None:
        raise ValueError(f"item {item.name} has no split: see items.with_splits")
    source = video.open_video(item.video, frames_fps=item.frames_fps)
    tracks = item.read_tracks(len(source.times))
    fps = config.fps or video.rate(source)
    picks = pick_frames(source, fps=config.fps, first=item.first_frame, repeat=config.repeat_frames)
    length, starts = config.length(len(picks)), config.starts(len(picks))
    if not starts:
        raise UserError(
            f"{item.video} has {len(source.times)} frames, {len(picks)} of them from frame {item.first_frame} on at "
            f"{fps:g} frames/s, a clip needs {length}: remove the video or give a smaller --frames"
        )
    for start, frames in _cut(source, picks, starts, length, config.fit):
        chosen = picks[start : start + length]
        yield Clip(
            name=f"{item.name}@{start:06d}",
            item=item.name,
            start=start,
            split=item.split,
            caption=item.caption,
            fps=fps,
            frames=frames,
            w2c=None if tracks.w2c is None else tracks.w2c[chosen],
            intrinsics=None
            if tracks.intrinsics is None
            else config.fit.intrinsics(tracks.intrinsics[chosen], source.size),
            controls=None if tracks.controls is None else tracks.controls.take(chosen),
            hand=None if tracks.hand is None else tracks.hand[chosen],
        )
        del frames


def pick_frames(source: video.Video, *, fps: float | None, first: int = 0, repeat: bool = False) -> np.ndarray:
    """Numbers of the frames that show the video at `fps`, int64, beginning with frame `first`.

    Frame k of the result is the one whose time stamp is nearest to k / fps after frame `first`, the earlier one of two
    equally near ones, up to the last frame. A video whose rate is `fps` within 1 % and steady (no gap of more than one
    and a half frames) is taken frame by frame, as every video is for fps None. No frame is used twice unless `repeat`;
    `UserError` where the rule asks for it.
    """
    every = np.arange(first, len(source.times))
    if fps is None or len(every) < 2:
        return every
    times = source.times[first:] - source.times[first]
    gaps = np.diff(times)
    own_rate = len(gaps) / times[-1]
    if abs(own_rate / fps - 1) <= SAME_RATE and gaps.max() <= 1.5 * gaps.mean():
        return every
    slack = 1e-6 / fps  # the same choice on every machine where a time lies in the middle between two frames
    wanted = np.arange(int((times[-1] + slack) * fps) + 1) / fps
    picks = np.searchsorted((times[1:] + times[:-1]) / 2, wanted - slack)
    repeated = len(picks) - len(np.unique(picks))
    if repeated and not repeat:
        raise UserError(
            f"{source.path} has {own_rate:.3g} frames/s with gaps of up to {gaps.max():.3g} s, at {fps:g} frames/s "
            f"{repeated} of {len(picks)} frames would be repeated: give a lower --fps or --repeat-frames"
        )
    return first + picks


def _cut(
    source: video.Video, picks: np.ndarray, starts: list[int], length: int, fit: fitting.Fit
) -> Iterator[tuple[int, np.ndarray]]:
    """(start, frames [length, height, width, 3]) of every clip; frames that clips share are decoded once."""
    # Where a clip's own frames begin, after those that it shares with the one before.
    ends = [0, *(start + length for start in starts[:-1])]
    fresh = [max(start, end) for start, end in zip(starts, ends, strict=True)]
    order = np.concatenate([np.arange(begin, start + length) for begin, start in zip(fresh, starts, strict=True)])
    frames: np.ndarray | None = None
    before = 0
    with contextlib.closing(_fitted(source, picks[order], fit)) as stream:
        for start, begin in zip(starts, fresh, strict=True):
            shared = None if frames is None or begin == start else frames[start - before :]
            frames = None  # a clip that shares nothing is gone before the next one needs memory
            frames = np.empty((length, fit.height, fit.width, 3), np.uint8)
            if shared is not None:
                frames[: begin - start] = shared
            shared = None
            for index in range(begin - start, length):
                frames[index] = next(stream)
            before = start
            yield start, frames


def _fitted(source: video.Video, numbers: np.ndarray, fit: fitting.Fit) -> Generator[np.ndarray, None, None]:
    """The frames with these non-decreasing numbers, in the model's size; decoding stops after the last one."""
    with contextlib.closing(source.frames()) as stream:
        position, frame = -1, np.empty(0)
        for number in numbers:
            if position < number:
                for raw in stream:
                    position += 1
                    if position == number:
                        frame = fit.frame(raw)
                        break
            if position < number:
                raise UserError(
                    f"{source.path} gave {position + 1} frames, {len(source.times)} when it was opened: it changed or "
                    "its disk fails; run again"
                )
            yield frame
