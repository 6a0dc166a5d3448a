"""Writers of a run's log: `metrics.jsonl`, TensorBoard, Weights & Biases."""

import contextlib
import dataclasses
import functools
import hashlib
import html
import io
import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import PIL.Image

from jworld.utils import errors, files

if TYPE_CHECKING:
    import tensorboardX

FILE = "metrics.jsonl"
BOARD = "tensorboard"
WANDB_PROJECT = "jworld"

Row = Mapping[str, Any]
WandbMode = Literal["off", "offline", "online"]


#: Size of videos in event files, in pixels, and their number of frames, at most.
BOARD_PIXELS, BOARD_FRAMES = 512, 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Media:
    """A sample of a run: a video or a text.

    Attributes:
      name: name of the sample.
      frames: video, uint8 [T, H, W, 3], or None.
      fps: frame rate of the video, in frames per second.
      text: text of a sample without a video.
    """

    name: str
    frames: np.ndarray | None = None
    fps: float = 1.0
    text: str = ""


class Writer(Protocol):
    """Receiver of rows {"step": int, name: number or None}, and of samples."""

    def write(self, row: Row) -> None: ...

    def show(self, step: int, media: Media) -> None: ...

    def close(self) -> None: ...


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Read the lines of `metrics.jsonl`, oldest first; skips a last line left incomplete by a killed run."""
    path = workdir / FILE
    rows = []
    for line in files.read_text(path).splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            row = files.parse_json(line)
            rows += [row] if isinstance(row, dict) else []
    return rows


class JsonLines:
    """Writer of `metrics.jsonl`, one JSON object per line; drops the lines of an earlier launch after `start_step`."""

    def __init__(self, workdir: pathlib.Path, start_step: int) -> None:
        path = workdir / FILE
        lines = [json.dumps(row) + "\n" for row in read(workdir) if row["step"] <= start_step]
        with files.replacing(path) as temporary:
            temporary.write_text("".join(lines))
        self._file = path.open("a")

    def write(self, row: Row) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def show(self, step: int, media: Media) -> None:
        """Do nothing: samples are files of their own."""

    def close(self) -> None:
        self._file.close()


def gif(frames: np.ndarray, fps: float) -> tuple[bytes, tuple[int, int]]:
    """Return a video uint8 [T, H, W, 3] as an endless GIF, and its width and height.

    It has at most `BOARD_FRAMES` frames, evenly spread over the video, and at most `BOARD_PIXELS` pixels per side.
    """
    every = -(-len(frames) // BOARD_FRAMES)
    images = [PIL.Image.fromarray(frame) for frame in frames[::every]]
    for image in images:
        image.thumbnail((BOARD_PIXELS, BOARD_PIXELS))
    buffer = io.BytesIO()
    # A GIF counts in hundredths of a second, and viewers slow down what is faster than 50 frames per second.
    duration = max(round(1000 * every / fps), 20)
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return buffer.getvalue(), images[0].size


class TensorBoard:
    """Writer of event files in `tensorboard/`; marks events of an earlier launch after `start_step` as void.

    The files are opened at the first event.
    """

    def __init__(self, workdir: pathlib.Path, start_step: int) -> None:
        self._folder, self._start_step = workdir / BOARD, start_step

    @functools.cached_property
    def _board(self) -> "tensorboardX.SummaryWriter":
        # Importing it imports PyTorch where that is installed, which takes seconds.
        import tensorboardX

        return tensorboardX.SummaryWriter(str(self._folder), purge_step=self._start_step + 1)

    def write(self, row: Row) -> None:
        for name, value in row.items():
            if name != "step" and value is not None:
                self._board.add_scalar(name, value, row["step"])

    def show(self, step: int, media: Media) -> None:
        """Add a video as an animated image, which TensorBoard plays, or a text."""
        name = f"samples/{media.name}"
        if media.frames is None:
            self._board.add_text(name, media.text, step)
            return
        animation, (width, height) = gif(media.frames, media.fps)
        from tensorboardX.proto import summary_pb2

        image = summary_pb2.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=animation)
        summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=name, image=image)])
        self._board.file_writer.add_summary(summary, step)

    def close(self) -> None:
        if "_board" in self.__dict__:
            self._board.close()


class WeightsAndBiases:
    """Writer of a W&B run in the project "jworld", named after the workdir and resumed by every launch.

    A resumed run logs again the steps that a kill undid, with the same values: W&B cannot remove them.
    """

    def __init__(self, workdir: pathlib.Path, mode: str, *, first_launch: float, config: Mapping[str, Any]) -> None:
        """Start or resume the W&B run.

        Raises:
          UserError: the package is missing.
        """
        try:
            import wandb
        except ImportError as error:
            raise errors.UserError(
                f"config.log.wandb is {mode!r} but the package wandb is missing: pip install 'jworld[wandb]', or set "
                "it to off"
            ) from error
        identity = hashlib.sha256(f"{workdir.resolve()} {first_launch}".encode()).hexdigest()[:16]
        self._wandb: Any = wandb
        self._run = wandb.init(
            project=WANDB_PROJECT,
            name=workdir.name,
            id=identity,
            resume="allow",
            mode=mode,
            dir=str(workdir),
            config=dict(config),
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, row: Row) -> None:
        self._run.log({name: value for name, value in row.items() if value is not None})

    def show(self, step: int, media: Media) -> None:
        """Log a video, or a text."""
        if media.frames is None:
            shown = self._wandb.Html(f"<pre>{html.escape(media.text)}</pre>")
        else:
            # W&B would need a further package to make a video of arrays.
            shown = self._wandb.Video(io.BytesIO(gif(media.frames, media.fps)[0]), format="gif")
        self._run.log({"step": step, f"samples/{media.name}": shown})

    def close(self) -> None:
        self._run.finish()
