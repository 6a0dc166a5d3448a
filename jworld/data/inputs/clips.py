"""Uniform clips: an item's video at one frame rate and one size, cut into clips, with the cameras of its frames.

At most one clip's frames are in memory, in addition to the clip that the caller holds.
"""

import contextlib
import dataclasses
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import numpy as np

from jworld.data.inputs import fitting, items, video
from jworld.utils import limits
from jworld.utils.errors import UserError

REMAINDERS = ("drop", "shift")
SHORT_VIDEOS = ("refuse", "stretch")
# Treats 29.97 as 30, where resampling would repeat one frame in a thousand.
SAME_RATE = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutConfig:
    """Settings that all clips of a data set share.

    Attributes:
      fit: the model's image size and how frames are brought to it.
      fps: frame rate of the clips, in frames per second; None keeps the rate of each video.
      frames: frames of a clip, a multiple of temporal_ratio plus one; None for one clip per video, as long as possible
        (the whole video is then in memory).
      stride: frames from the start of one clip to the start of the next; None for `frames`. Clips overlap if it is
        smaller.
      remainder: frames after the last whole clip: "drop" discards them, "shift" adds a clip that ends with the video
        and overlaps the previous one.
      repeat_frames: repeat frames of a video that has too few for `fps`; otherwise it is refused.
      short_videos: a video that is shorter than a clip: "refuse" makes it an error, "stretch" spreads its frames evenly
        over one clip and repeats some, which slows it down, as The Matrix does.
      temporal_ratio: frames per latent of the autoencoder.
    """

    fit: fitting.Fit
    fps: float | None = None
    frames: int | None = None
    stride: int | None = None
    remainder: str = "drop"
    repeat_frames: bool = False
    short_videos: str = "refuse"
    temporal_ratio: int = 4

    def __post_init__(self) -> None:
        ratio = self.temporal_ratio
        if self.frames is not None and (self.frames < ratio + 1 or self.frames % ratio != 1 % ratio):
            raise UserError(
                f"a clip has {self.frames} frames, expected {ratio}k+1: give --frames {self._whole(self.frames)} or "
                f"{self._whole(self.frames) + ratio}"
            )
        if self.stride is not None and self.frames is None:
            raise UserError(f"stride is {self.stride} but a clip is a whole video: also give --frames")
        if self.stride is not None and self.stride < 1:
            raise UserError(f"stride is {self.stride} frames, expected at least 1: change --stride")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise UserError(f"frame rate is {self.fps}, expected a positive number: change --fps")
        if self.remainder not in REMAINDERS:
            raise UserError(f"remainder is {self.remainder!r}, expected one of {', '.join(REMAINDERS)}")
        if self.short_videos not in SHORT_VIDEOS:
            raise UserError(f"short_videos is {self.short_videos!r}, expected one of {', '.join(SHORT_VIDEOS)}")

    def manifest_entry(self) -> dict[str, Any]:
        """Return the settings as JSON."""
        return dataclasses.asdict(self)

    def length(self, available: int) -> int:
        """Return the frames of a clip of a video that has `available` frames at the clips' rate."""
        return self.frames if self.frames is not None else self._whole(available)

    def starts(self, available: int) -> list[int]:
        """Return the starts of the clips of such a video, in frames at the clips' rate; empty if it is too short."""
        length = self.length(available)
        starts = list(range(0, available - length + 1, self.stride or length))
        if self.remainder == "shift" and starts and self.frames is not None and starts[-1] + length < available:
            starts.append(available - length)
        return starts

    def _whole(self, frames: int) -> int:
        """Return the length of the longest clip of at most `frames` frames, but of two latents at least."""
        return max((frames - 1) // self.temporal_ratio, 1) * self.temporal_ratio + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """A clip: T uniform frames of one item.

    Attributes:
      name: `"<item>@<start>"`, unique within the data set.
      item: the item's name.
      start: number of the first frame at the clips' rate, counted from the item's first frame.
      split: "train" or "val".
      caption: the item's text.
      fps: frames per second.
      frames: uint8 [T, H, W, 3], or [V, T, H, W, 3] of V synchronized cameras.
      w2c: float64 [T, 4, 4] OpenCV world-to-camera, in the item's own coordinates, or None.
      intrinsics: float64 [T, 3, 3] divided by the image size, corrected for the crop, or None.
      controls: what was pressed, one word per frame, or None.
      hand: float64 [T, 7] state of a robot arm's hand, or None.
      commands: float64 [T - 1, A], the last command before each frame after the first, or None.
      captions: the texts of the cameras; () for one camera.
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
    commands: np.ndarray | None
    captions: tuple[str, ...] = ()

    @property
    def length(self) -> int:
        """Frames T of one camera."""
        return int(self.frames.shape[-4])


def read_clips(item: items.Item, config: CutConfig) -> Iterator[Clip]:
    """Yield the clips of one item in order.

    A video file is decoded once before its first clip. So a file that is damaged, too short or inconsistent with its
    cameras raises a `UserError` before any clip. Images of a folder are opened one by one.
    """
    if item.problem is not None:
        raise UserError(item.problem)
    if item.split is None:
        raise ValueError(f"item {item.name} has no split: see items.with_splits")
    sources = [_open(view) for view in item.views or (item,)]
    source = sources[0]
    _check_same(sources)
    tracks = item.read_tracks(len(source.times))
    fps = config.fps or video.rate(source)
    picks, length, starts = _plan(source, item, config, fps)
    first, *others = [_cut(one, picks, starts, length, config.fit) for one in sources]
    # `zip` would keep the last clip while the next one is decoded.
    for start, frames in first:
        if item.views:
            frames = np.stack([frames, *(next(other)[1] for other in others)])
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
            # A frame that is repeated keeps the command that led to it.
            commands=None if tracks.commands is None else tracks.commands[np.maximum(chosen[1:] - 1, 0)],
            captions=tuple(view.caption for view in item.views),
        )
        del frames


def _open(item: items.Item) -> video.Video:
    return item.open_video() if item.open_video else video.open_video(item.video, frames_fps=item.frames_fps)


def _check_same(sources: Sequence[video.Video]) -> None:
    """Raise a `UserError` unless the videos of several cameras have the same frames, times and size."""
    first = sources[0]
    for other in sources[1:]:
        if len(other.times) != len(first.times):
            what = f"{len(other.times)} frames, expected {len(first.times)}"
        elif other.size != first.size:
            what = "{}x{} pixels, expected {}x{}".format(*other.size, *first.size)
        elif np.abs(other.times - first.times).max() > 0.5 * np.diff(first.times).min():
            what = f"{video.rate(other):g} frames/s and its own times, expected {video.rate(first):g}"
        else:
            continue
        raise UserError(
            f"{other.path} has {what} as in {first.path}: videos of synchronized cameras show the same moments in the "
            "same size: cut or encode them together"
        )


def _plan(source: video.Video, item: items.Item, config: CutConfig, fps: float) -> tuple[np.ndarray, int, list[int]]:
    """Return the numbers of the frames at the clips' rate, the length of a clip, and the starts of the clips."""
    first = item.first_frame
    picks = pick_frames(source, fps=config.fps, first=first, repeat=config.repeat_frames)
    length = config.length(len(picks))
    if len(picks) < length and item.moves_back:
        # The latest start from which a clip fits.
        fitting_starts = np.flatnonzero(source.times[-1] - source.times >= (length - 1) / fps - 1e-6 / fps)
        first = int(fitting_starts[-1]) if len(fitting_starts) else 0
        picks = pick_frames(source, fps=config.fps, first=first, repeat=config.repeat_frames)
    if len(picks) < length and config.short_videos == "stretch":
        return np.rint(np.linspace(0, len(source.times) - 1, length)).astype(np.int64), length, [0]
    starts = config.starts(len(picks))
    if not starts:
        raise UserError(
            f"{item.video} has {len(source.times)} frames, {len(picks)} of them from frame {first} on at {fps:g} "
            f"frames/s, a clip needs {length}: remove the video, give a smaller --frames, or --short-videos stretch"
        )
    return picks, length, starts


def pick_frames(source: video.Video, *, fps: float | None, first: int = 0, repeat: bool = False) -> np.ndarray:
    """Return the numbers of the frames that show the video at `fps`, int64, beginning with frame `first`.

    Frame k of the result is the one whose time stamp is nearest to k / fps after frame `first`; the earlier of two
    equally near ones. If the video's rate is `fps` within 1 % and steady (no gap of more than one and a half frames),
    every frame is used, as for fps None. A `UserError` if a frame would be used twice, unless `repeat`.
    """
    every = np.arange(first, len(source.times))
    if fps is None or len(every) < 2:
        return every
    times = source.times[first:] - source.times[first]
    gaps = np.diff(times)
    own_rate = len(gaps) / times[-1]
    if abs(own_rate / fps - 1) <= SAME_RATE and gaps.max() <= 1.5 * gaps.mean():
        return every
    slack = 1e-6 / fps  # on every machine the same choice for a time halfway between two frames
    count = int((times[-1] + slack) * fps) + 1
    if count > limits.VIDEO_FRAMES:
        raise UserError(
            f"{source.path} has {times[-1]:g} s by its time stamps, {count:,} frames at {fps:g} frames/s, expected at "
            f"most {limits.VIDEO_FRAMES:,}: encode it again, or give a lower --fps"
        )
    targets = np.arange(count) / fps
    picks = np.searchsorted((times[1:] + times[:-1]) / 2, targets - slack)
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
    """Yield (start, frames [length, height, width, 3]) of every clip; frames that clips share are decoded once."""
    # First frame of each clip that it does not share with the previous one.
    ends = [0, *(start + length for start in starts[:-1])]
    fresh = [max(start, end) for start, end in zip(starts, ends, strict=True)]
    order = np.concatenate([np.arange(begin, start + length) for begin, start in zip(fresh, starts, strict=True)])
    frames: np.ndarray | None = None
    before = 0
    with contextlib.closing(_fitted(source, picks[order], fit)) as stream:
        for start, begin in zip(starts, fresh, strict=True):
            shared = None if frames is None or begin == start else frames[start - before :]
            frames = None  # frees a clip that shares nothing before the next one is allocated
            frames = np.empty((length, fit.height, fit.width, 3), np.uint8)
            if shared is not None:
                frames[: begin - start] = shared
            shared = None
            for index in range(begin - start, length):
                frames[index] = next(stream)
            before = start
            yield start, frames


def _fitted(source: video.Video, numbers: np.ndarray, fit: fitting.Fit) -> Generator[np.ndarray, None, None]:
    """Yield the frames with these non-decreasing numbers, in the model's size; decoding stops after the last one."""
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
                    f"{source.path} has {position + 1} frames, but had {len(source.times)} when it was opened: "
                    "run again, and check the disk if the file did not change"
                )
            yield frame
