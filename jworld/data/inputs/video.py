"""The reader of videos as streams of frames, for all commands: files that ffmpeg decodes, and folders of images."""

import pathlib
import re
import subprocess
from collections.abc import Generator
from typing import IO, Protocol

import imageio_ffmpeg
import numpy as np

from jworld.data import ffmpeg
from jworld.data.inputs import image
from jworld.utils import limits, placeholders
from jworld.utils.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov", ".m4v", ".avi", *image.ANIMATED_SUFFIXES)
#: Seconds of a video that are decoded whole even if only its end is needed, so that damage anywhere is reported.
WHOLE_SECONDS = 60.0

# Frames as they are stored, none repeated or dropped for a constant rate. "V" excludes cover images.
_FRAMES = ("-map", "0:V:0", "-fps_mode", "passthrough")
_PROBLEM = re.compile(r"^(?P<source>(\[[^\]]* @ [^\]]*\] )*)\[(error|fatal)\] (?P<text>.*)$")
# An error of the container always means a damaged file; decoders also report harmless errors.
_CONTAINER = re.compile(r"^\[(in#|mov,|matroska,)")
_DURATION = re.compile(r"Duration: (\d+):(\d\d):(\d\d\.\d+)(?:, start: (-?\d+\.\d+))?")
# Pixel formats with transparency, as ffmpeg prints them for the first video stream.
_ALPHA = re.compile(r"Stream #0:\d+.*: Video: .*\b(yuva\w+|rgba\w*|bgra\w*|argb\w*|abgr\w*|gbrap\w*|ya8|ya16\w*)\b")
# Multiplies the colors by the transparency: over black.
_OVER_BLACK = ("-vf", "format=gbrap,premultiply=inplace=1")


class Video(Protocol):
    """A complete video.

    Attributes:
      path: file or folder.
      times: float64 [T], seconds from the first frame, increasing.
      size: width and height of its frames.
    """

    path: pathlib.Path
    times: np.ndarray
    size: tuple[int, int]

    def frames(self) -> Generator[np.ndarray, None, None]:
        """Yield the frames uint8 [H, W, 3] in order, one in memory at a time; close the iterator to stop early."""


def open_video(path: pathlib.Path, *, frames_fps: float | None = None) -> Video:
    """Open a file or a folder of images; a `UserError` if it cannot be decoded to its end."""
    if path.is_dir():
        return ImageFolder(path, fps=frames_fps)
    if image.is_animated(path):
        return image.AnimatedImage(path)
    return VideoFile(path)


def open_end(path: pathlib.Path, seconds: float) -> Video:
    """Open a file for its last `seconds`; a `UserError` if they cannot be decoded.

    A file of more than `WHOLE_SECONDS` is decoded from shortly before them, any other one to its end as by
    `open_video`.
    """
    if path.is_file() and not image.is_animated(path) and (_duration(path) or 0.0) > max(WHOLE_SECONDS, 2 * seconds):
        try:
            end = VideoFile(path, last_seconds=seconds + 1)
        except UserError:
            # A longer audio track, or damage, which the whole file reports.
            return open_video(path)
        if end.times[-1] >= seconds:
            return end
    return open_video(path)


def rate(video: Video) -> float:
    """Return the frames per second, the mean over the video."""
    return (len(video.times) - 1) / float(video.times[-1])


class VideoFile:
    """A video file, decoded once when it is opened to count its frames and read their time stamps.

    The container's count is not reliable: files that were cut without encoding hold frames that are never shown.
    """

    def __init__(
        self,
        path: pathlib.Path,
        *,
        last_seconds: float | None = None,
        section: tuple[float, float] | None = None,
        stored: tuple[pathlib.Path, int, int] | None = None,
    ) -> None:
        """Open a file, or only about its `last_seconds`, or the frames that begin in [begin, end) seconds.

        With `stored` the video lies in that file, at an offset and with a size in bytes; `path` is its name alone.
        """
        self.path = path
        holder, *part = stored or (path,)
        if not holder.is_file():
            raise UserError(f"{path} is absent, expected a video: add it or correct the path")
        self._input = ["-copyts", "-sseof", f"-{last_seconds}"] if last_seconds else []
        if section is not None:
            # The decoder starts at the key frame before, and what is shown earlier is dropped.
            begin, end = section
            self._input = ["-ss", f"{max(begin, 0.0):.6f}", "-t", f"{max(end - begin, 0.0):.6f}"]
        self._input += [
            "-max_pixels",
            str(limits.IMAGE_PIXELS),
            *ffmpeg.source(holder, part=(part[0], part[1]) if part else None),
        ]
        command = _ffmpeg("-loglevel", "level+info", "-xerror", *self._input, *_FRAMES, "-enc_time_base", "demux")
        # Audio packets are copied for their times, since an audio track may outlast the frames.
        command += ["-map", "0:a?", "-c:a", "copy", "-f", "framecrc", "-"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, process_group=0)
        log = done.stderr.decode(errors="replace")
        self._filter = _OVER_BLACK if _ALPHA.search(log) else ()
        self.size, seconds, ends = self._read_table(done.stdout.decode(errors="replace"))
        self._refuse_broken(len(seconds), done.returncode, log)
        if not 2 <= len(seconds) <= limits.VIDEO_FRAMES:
            raise UserError(
                f"{path} holds {len(seconds):,} frames, expected a video of at least 2, at most "
                f"{limits.VIDEO_FRAMES:,}: remove it"
            )
        if (np.diff(seconds) <= 0).any():
            frame = int(np.argmax(np.diff(seconds) <= 0)) + 1
            raise UserError(
                f"{path}: the time stamp of frame {frame} is not after the one before it, expected increasing ones: "
                "encode the video again, with ffmpeg -i"
            )
        if section is None:
            self._refuse_short(seconds, ends, log, absolute=last_seconds is not None)
        self.times = seconds - seconds[0]

    def frames(self) -> Generator[np.ndarray, None, None]:
        """Yield the frames, see `Video`."""
        # Every image has its own header: "P6\n<width> <height>\n255\n".
        command = _ffmpeg("-loglevel", "quiet", *self._input, *_FRAMES, *self._filter)
        command += ["-pix_fmt", "rgb24", "-c:v", "ppm", "-f", "image2pipe", "-"]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, process_group=0
        ) as process:
            assert process.stdout is not None
            try:
                while (frame := _read_image(process.stdout)) is not None:
                    _refuse_size(self.path, frame, self.size)
                    yield frame
            finally:
                process.kill()

    def _read_table(self, table: str) -> tuple[tuple[int, int], np.ndarray, list[float]]:
        """Parse ffmpeg's table of frames: (width, height), the frames' seconds, and the end of each stream."""
        ticks: dict[str, float] = {}
        size, seconds, ends = (0, 0), [], [0.0]
        for line in table.splitlines():
            if line.startswith("#tb "):
                stream, base = line[4:].split(": ")
                numerator, denominator = base.split("/")
                ticks[stream] = int(numerator) / int(denominator)
            elif line.startswith("#dimensions 0: "):
                width, height = line.removeprefix("#dimensions 0: ").split("x")
                size = int(width), int(height)
            elif not line.startswith("#"):
                stream, _, shown, duration = (part.strip() for part in line.split(",")[:4])
                if not shown.lstrip("-").isdigit():
                    raise UserError(f"{self.path} has frames without time stamps: encode it again, with ffmpeg -i")
                ends.append((int(shown) + int(duration)) * ticks[stream])
                if stream == "0":
                    seconds.append(int(shown) * ticks[stream])
        return size, np.array(seconds), ends

    def _refuse_broken(self, frames: int, returncode: int, log: str) -> None:
        problems = [match for line in log.splitlines() if (match := _PROBLEM.match(line))]
        container = [match for match in problems if _CONTAINER.match(match["source"])]
        if returncode or container:
            reason = (container or problems)[0]["text"] if problems else f"ffmpeg ended with code {returncode}"
            if placeholder := placeholders.find(self.path):
                raise UserError(f"{self.path} {placeholder}")
            raise UserError(
                f"{self.path} is damaged or not a video: {frames} frames decode, then: {reason.rstrip('.')}; copy or "
                "encode it again"
            )

    def _refuse_short(self, seconds: np.ndarray, ends: list[float], log: str, *, absolute: bool) -> None:
        """Find frames missing at the end by the duration in the container's header.

        Times are `absolute` if they count from zero and not from the start of the container.
        """
        match = _DURATION.search(log)
        if match is None:
            return
        promised = _seconds(match)
        if absolute:
            ends = [end - float(match[4] or 0) for end in ends]
        step = float(np.mean(np.diff(seconds)))
        # The last frame's own duration may be unknown, and the header's duration is printed with two decimals.
        if max(ends) + 1.5 * step + 0.02 < promised:
            raise UserError(
                f"{self.path} decodes to {len(seconds)} frames ({max(ends):.2f} s), expected "
                f"{promised:.2f} s as in its header: the file is truncated, copy it again"
            )


class ImageFolder:
    """A folder of image files, in the order of the numbers in their names (2 before 10)."""

    def __init__(self, path: pathlib.Path, *, fps: float | None) -> None:
        self.path = path
        self._files = image_files(path)
        if fps is None or fps <= 0:
            raise UserError(
                f"{path} is a folder of images without time stamps (images per second: {fps}): give --frames-fps"
            )
        if len(self._files) < 2:
            raise UserError(f"{path} holds {len(self._files)} images, expected at least 2: remove it")
        self.times = np.arange(len(self._files)) / fps
        first = image.read(self._files[0])
        self.size = first.shape[1], first.shape[0]

    def frames(self) -> Generator[np.ndarray, None, None]:
        """Yield the frames, see `Video`."""
        for file in self._files:
            frame = image.read(file)
            _refuse_size(file, frame, self.size)
            yield frame


def image_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Return the images directly in a folder, in the order of the numbers in their names."""
    files = [file for file in folder.iterdir() if file.suffix.lower() in image.SUFFIXES and is_visible(file)]
    return sorted(files, key=lambda file: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", file.name)])


def is_visible(path: pathlib.Path) -> bool:
    """Return whether a file is not hidden, as those of desktops and copy programs are."""
    return not path.name.startswith(".")


def _duration(path: pathlib.Path) -> float | None:
    """Return the seconds in the container's header, None if it has none."""
    done = subprocess.run(_ffmpeg(*ffmpeg.source(path)), stdin=subprocess.DEVNULL, capture_output=True, check=False)
    match = _DURATION.search(done.stderr.decode(errors="replace"))
    return None if match is None else _seconds(match)


def _seconds(duration: re.Match[str]) -> float:
    return int(duration[1]) * 3600 + int(duration[2]) * 60 + float(duration[3])


def _ffmpeg(*arguments: str) -> list[str]:
    # Not imageio_ffmpeg's own readers: their preexec_fn forks a process in which JAX runs threads.
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostats", *arguments]


def _read_image(stream: IO[bytes]) -> np.ndarray | None:
    header = [stream.readline() for _ in range(3)]
    if header[0] != b"P6\n":
        return None
    width, height = map(int, header[1].split())
    data = stream.read(3 * width * height)
    if len(data) < 3 * width * height:
        return None
    return np.frombuffer(data, np.uint8).reshape(height, width, 3)


def _refuse_size(path: pathlib.Path, frame: np.ndarray, size: tuple[int, int]) -> None:
    height, width, _ = frame.shape
    if (width, height) != size:
        raise UserError(
            f"{path}: a frame has {width}x{height} pixels, the first one has {size[0]}x{size[1]}, expected one size: "
            "encode the video again"
        )
