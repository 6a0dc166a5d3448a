"""Files of generated videos, and the progress of generation on the terminal."""

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import rich.progress

from jworld.data import video_stream
from jworld.data.recording import episodes
from jworld.evaluation import contact_sheets, results
from jworld.systems.requests import Video
from jworld.utils import errors, files


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
    video: Video, frames: list[np.ndarray], *, stream: bool, fps: float
) -> Iterator[Callable[[np.ndarray], None]]:
    """Open the destination of a chunk's frames: the growing file of the video for `stream`, or the list `frames`."""
    if not stream:
        yield frames.append
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
    video: Video, rollout: results.Comparison | None, facts: dict[str, Any], *, sheet: bool
) -> list[pathlib.Path]:
    """Write video, images and numbers, or only the numbers without a rollout; return their names.

    Each file is complete or absent. The numbers come last, so that they mark a finished video.
    """
    out = video.out
    # The video encoder chooses the format by the suffix.
    partial = out.with_name(f".{out.stem}.partial{out.suffix}")
    paths = [out, video.facts_file]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            if rollout is not None:
                video.facts_file.unlink(missing_ok=True)
                episodes.write_video(partial, rollout.prediction, fps=facts["fps"])
                partial.replace(out)
            if rollout is not None and sheet:
                paths.append(out.with_suffix(".png"))
                contact_sheets.contact_sheet([rollout]).save(partial, format="png")
                partial.replace(paths[2])
            files.write_json(video.facts_file, facts, allow_nan=False)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise errors.UserError(f"--out {out} could not be written ({error}): give another name") from error
    return paths
