"""Streaming video writer: a fragmented MP4 that can be played while it grows."""

import contextlib
import pathlib
import subprocess
import types

import imageio_ffmpeg
import numpy as np

from jworld.data import ffmpeg
from jworld.utils import errors


class VideoStream:
    """Writer that encodes frames as they arrive, so memory does not grow with the length of the video.

    Every frame is its own fragment: the file can be played even if the writer was killed.
    """

    def __init__(self, path: str | pathlib.Path, *, fps: float):
        self._path, self._fps = pathlib.Path(path), fps
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "VideoStream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._process is not None:
            self._finish()

    def close(self) -> None:
        """Wait until the file is complete.

        Raises:
          UserError: the file cannot be written.
        """
        reason = "" if self._process is None else self._finish()
        if reason:
            raise self._failed(reason)

    def write(self, frames: np.ndarray) -> None:
        """Append frames uint8 [T, H, W, 3] (even H and W, always the same).

        Raises:
          UserError: the file cannot be written.
        """
        if self._process is None:
            self._process = self._start(*frames.shape[1:3])
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(np.ascontiguousarray(frames).data)
            self._process.stdin.flush()
        except OSError as error:
            raise self._failed(self._finish() or str(error)) from error

    def _start(self, height: int, width: int) -> subprocess.Popen[bytes]:
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(self._fps), "-i", "-"]
        # No look-ahead: otherwise a frame waits in the encoder for dozens of later ones.
        coding = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "10", "-preset", "veryfast", "-tune", "zerolatency"]
        fragments = ["-g", str(max(round(self._fps), 1)), "-movflags", "empty_moov+default_base_moof+frag_every_frame"]
        flags = ["-hide_banner", "-loglevel", "error", "-probesize", "32", "-y"]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), *flags, *source, "-an", *coding, *fragments]
        return subprocess.Popen(
            [*command, "-flush_packets", "1", ffmpeg.name(self._path)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )

    def _finish(self) -> str:
        """Wait for the encoder and return its error message, "" if it succeeded."""
        process, self._process = self._process, None
        assert process is not None
        assert process.stdin is not None
        assert process.stderr is not None
        # A failed encoder has closed this pipe and printed the reason on the other one.
        with contextlib.suppress(OSError):
            process.stdin.close()
        message = process.stderr.read().decode(errors="replace").strip()
        process.stderr.close()
        return " ".join(message.split()) or "the encoder failed" if process.wait() else ""

    def _failed(self, reason: str) -> errors.UserError:
        return errors.UserError(f"--out {self._path} could not be written ({reason}): give another name")
