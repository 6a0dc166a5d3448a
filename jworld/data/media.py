"""Readers of the images and videos that a user names: every command reads them here."""

import contextlib
import pathlib

import numpy as np

from jworld.data.inputs import image, video
from jworld.data.inputs.clips import SAME_RATE
from jworld.utils import errors

_FILES = "give an image (PNG, JPEG, WebP, GIF, BMP or TIFF) or a video (MP4, MOV, MKV, WebM, AVI or GIF)"


def read_start(
    path: pathlib.Path, flag: str = "--image", *, frames: int | None = None, fps: float | None = None
) -> np.ndarray:
    """Return an image as uint8 [H, W, 3], or the last frames of a video as [T, H, W, 3], of any size.

    The content decides, not the suffix; a GIF or WebP file with several frames is a video. Only the frames of the
    result are in memory.

    Args:
      path: the file.
      flag: name of the option in errors.
      frames: number of last frames of the result, at most; None for all.
      fps: frame rate of the result: its frames are those nearest in time, counted back from the last one. None keeps
        the frames of the video.

    Raises:
      UserError: the file is absent, damaged, or neither an image nor a video.
    """
    is_video = path.suffix.lower() in video.VIDEO_SUFFIXES and path.suffix.lower() not in image.ANIMATED_SUFFIXES
    if not is_video and image.is_image(path) and not image.is_animated(path):
        return read_image(path, flag)
    try:
        whole = frames is None or fps is None
        source = video.open_video(path) if whole else video.open_end(path, (frames or 0) / (fps or 1))
        picks = last_frames(source.times, frames=frames, fps=fps)
        chosen, taken = set(picks.tolist()), []
        with contextlib.closing(source.frames()) as stream:
            for number, frame in enumerate(stream):
                if number in chosen:
                    taken.append(frame)
                if number >= picks[-1]:
                    break
    except errors.UserError as error:
        raise _refused(flag, path, error) from error
    # A frame is taken several times where the video has a lower rate.
    order = np.searchsorted(np.unique(picks), picks)
    return np.stack([taken[i] for i in order])


def last_frames(times: np.ndarray, *, frames: int | None, fps: float | None) -> np.ndarray:
    """Return the numbers of the last `frames` frames at `fps`, int64 in order; fewer if the video is shorter.

    `times` are seconds [T], increasing. The last frame is always one; the others are nearest to whole multiples of
    1 / fps before it. If the video's rate is `fps` within 1 % and steady, they are its last frames.
    """
    gaps = np.diff(times)
    if fps is not None and frames is not None:
        # The rate near the end decides, where a recording changes it.
        gaps = gaps[times[:-1] >= times[-1] - frames / fps]
    steady = not len(gaps) or gaps.max() <= 1.5 * gaps.mean()
    if fps is None or (len(gaps) and steady and abs(1 / gaps.mean() / fps - 1) <= SAME_RATE):
        return np.arange(max(len(times) - frames, 0) if frames else 0, len(times))
    span = times[-1] - times[0]
    slack = 1e-6 / fps  # on every machine the same choice for a time halfway between two frames
    count = int((span + slack) * fps) + 1
    targets = times[-1] - np.arange(min(count, frames) if frames else count)[::-1] / fps
    picks: np.ndarray = np.searchsorted((times[1:] + times[:-1]) / 2, targets - slack)
    return picks


def read_image(path: str | pathlib.Path, flag: str = "--image") -> np.ndarray:
    """Return an image file as uint8 [H, W, 3], upright, transparent pixels over black; `flag` names it in errors."""
    try:
        return image.read(pathlib.Path(path))
    except errors.UserError as error:
        raise _refused(flag, path, error) from error


def _refused(flag: str, path: str | pathlib.Path, error: errors.UserError) -> errors.UserError:
    reason = str(error).removeprefix(str(path)).lstrip(": ")
    return errors.UserError(f"{flag} {path} cannot be read: {reason}; {_FILES}")
