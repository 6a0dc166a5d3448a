"""Short videos with the frame number as gray level, and cameras written by hand."""

import math
import pathlib
import subprocess

import imageio_ffmpeg
import numpy as np

WIDTH, HEIGHT, FRAMES = 32, 24, 30
LEVELS = 8  # gray levels between consecutive frames, more than the compression loses

STEP, TURN = 0.05, math.radians(1)


def numbered(frames: int = FRAMES, *, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Make uint8 [T, H, W, 3]; each frame has one gray level."""
    gray = (np.arange(frames) * LEVELS % 256).astype(np.uint8)
    return np.broadcast_to(gray[:, None, None, None], (frames, height, width, 3)).copy()


def numbers(frames: np.ndarray) -> list[int]:
    """Return the numbers of numbered frames [T, H, W, 3]."""
    return [round(float(frame.mean()) / LEVELS) for frame in frames]


def ffmpeg(*arguments: str, data: bytes | None = None) -> None:
    """Run ffmpeg, quietly."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", *arguments]
    subprocess.run(command, input=data or b"", check=True)


def write(path: pathlib.Path, frames: np.ndarray | None = None, *, fps: float = 10, options: tuple = ()) -> None:
    """Write a video file; its suffix selects the container."""
    frames = numbered() if frames is None else frames
    path.parent.mkdir(parents=True, exist_ok=True)
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    codecs = {".webm": ["-c:v", "libvpx", "-crf", "4", "-b:v", "1M", "-pix_fmt", "yuv420p"], ".gif": ["-c:v", "gif"]}
    coding = codecs.get(path.suffix, ["-c:v", "libx264", "-crf", "1", "-pix_fmt", "yuv420p"])
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-"]
    ffmpeg(*source, *coding, *options, str(path), data=frames.tobytes())


def camera_path(frames: int = 9) -> np.ndarray:
    """Return camera-to-world poses [T, 4, 4]: ahead along z up to frame 4, then turning right (z towards x)."""
    c2w = np.tile(np.eye(4), (frames, 1, 1))
    for t in range(frames):
        angle = TURN * max(t - 4, 0)
        c2w[t, :3, 0] = math.cos(angle), 0, -math.sin(angle)
        c2w[t, :3, 2] = math.sin(angle), 0, math.cos(angle)
        c2w[t, 2, 3] = STEP * min(t, 4)
    return c2w
