"""Files of generated videos, and the progress of generation on the terminal."""

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.progress

from jworld.data import camera_grids, video_stream
from jworld.data.recording import episodes
from jworld.evaluation import contact_sheets, results
from jworld.systems.requests import Video
from jworld.utils import errors, files, outputs


class ProgressBar:
    """The progress of one video: a bar of chunks and, for slow models, of the denoising steps within a chunk.

    Where the output is not a terminal, every denoising step is a line.
    """

    def __init__(self, progress: rich.progress.Progress, *, chunks: int) -> None:
        self._progress, self._chunks, self._done, self._began = progress, chunks, 0, time.time()
        self._bar = progress.add_task("generating", total=chunks)

    def advance(self) -> None:
        """Count a chunk."""
        self._done += 1
        self._progress.update(self._bar, completed=self._done)

    def step(self, done: int, steps: int) -> None:
        """Show that `done` of the `steps` of the current chunk are computed."""
        text = f"chunk {self._done + 1} of {self._chunks}, step {done} of {steps}"
        if self._progress.console.is_terminal:
            # A chunk also has a part after its steps, when it is decoded.
            self._progress.update(self._bar, completed=self._done + done / (steps + 1), description=text)
        else:
            self._progress.console.print(f"{text}, {time.time() - self._began:.1f} s")


@contextlib.contextmanager
def frame_sink(
    video: Video, frames: list[np.ndarray], console: rich.console.Console, *, stream: bool, fps: float
) -> Iterator[Callable[[np.ndarray], None]]:
    """Open the destination of a chunk's frames: the growing file of the video for `stream`, or the list `frames`.

    If the rollout fails or is interrupted, the frames so far stay in the growing file, or are written to
    `outputs.partial` of its name.
    """
    if not stream:
        try:
            yield frames.append
        except BaseException:
            if frames:
                console.print(_keep(outputs.partial(video.out), np.concatenate(frames), fps=fps))
            raise
        return
    try:
        video.out.parent.mkdir(parents=True, exist_ok=True)
        # It marks a finished video.
        video.facts_file.unlink(missing_ok=True)
    except OSError as error:
        raise errors.UserError(f"--out {video.out} could not be written ({error}): give another name") from error
    with video_stream.VideoStream(video.out, fps=fps) as file:
        yield file.write


def write(
    video: Video,
    rollout: results.Comparison | None,
    facts: dict[str, Any],
    *,
    sheet: bool,
    cameras: Sequence[str] = (),
) -> list[pathlib.Path]:
    """Write video, images and numbers, or only the numbers without a rollout; return their names.

    With several cameras, whose grid the video is, every one of them is also a video of its own.
    Each file is complete or absent. The numbers come last, so that they mark a finished video.

    Raises:
      UserError: a file cannot be written; the video is then kept in the folder for temporary files.
    """
    out, fps = video.out, facts["fps"]
    paths = [out, video.facts_file]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if rollout is not None:
            video.facts_file.unlink(missing_ok=True)
            _write_video(out, rollout.prediction, fps=fps)
        if rollout is not None and cameras:
            for name, own in zip(cameras, camera_grids.split(rollout.prediction, len(cameras)), strict=True):
                paths.append(camera_file(out, name))
                _write_video(paths[-1], own, fps=fps)
        if rollout is not None and sheet:
            paths.append(out.with_suffix(".png"))
            with files.replacing(paths[-1]) as temporary:
                contact_sheets.contact_sheet([rollout]).save(temporary, format="png")
        files.write_json(video.facts_file, facts, allow_nan=False)
    except OSError as error:
        problem = f"--out {out} could not be written ({error})"
        if rollout is not None:
            problem = f"{problem}; {_keep_elsewhere(out, rollout.prediction, fps=fps)}"
        raise errors.UserError(f"{problem}: free space, or give another name") from error
    return paths


def camera_file(out: pathlib.Path, camera: str) -> pathlib.Path:
    """Return the name of the video of one of several cameras."""
    return out.with_name(f"{out.stem}.{camera.replace('/', '_')}{out.suffix}")


def _write_video(path: pathlib.Path, frames: np.ndarray, *, fps: float) -> None:
    """Write a video, complete or not at all."""
    # The video encoder chooses the format by the suffix.
    temporary = path.with_name(f".{path.stem}.tmp{path.suffix}")
    try:
        episodes.write_video(temporary, frames, fps=fps)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _keep(path: pathlib.Path, frames: np.ndarray, *, fps: float) -> str:
    """Write the frames of an unfinished video, and return a line about them."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_video(path, frames, fps=fps)
    except OSError as error:
        return f"{path} could not be written ({error}); {_keep_elsewhere(path, frames, fps=fps)}"
    return f"wrote {path}: the {len(frames)} frames made so far"


def _keep_elsewhere(path: pathlib.Path, frames: np.ndarray, *, fps: float) -> str:
    """Write frames to a new folder for temporary files, and return where they are."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="jworld-"))
    try:
        _write_video(folder / path.name, frames, fps=fps)
    except OSError:
        folder.rmdir()
        return "the frames could not be kept elsewhere either"
    return f"the frames are kept in {folder / path.name}"
