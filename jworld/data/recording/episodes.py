"""Raw episodes on disk: a video, the action and camera of every frame, and a caption.

A data set is `DIR/manifest.json` and one folder per episode with `video.mp4` and `episode.json`. Cameras are OpenCV
world-to-camera matrices (x right, y down, z forward); intrinsics are divided by the image size.
"""

import dataclasses
import errno
import os
import pathlib
import shutil
import signal
import subprocess
from collections.abc import Mapping
from typing import Any

import imageio_ffmpeg
import numpy as np

from jworld.data import ffmpeg
from jworld.utils import checksums, errors, files

FORMAT = "jworld-episodes"
VERSION = 1
CAMERA_CONVENTION = "opencv_w2c"
MANIFEST = "manifest.json"
DIRECTIONS = ("forward", "backward", "left", "right", "yaw_left", "yaw_right")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
    """One recorded episode of T frames.

    Attributes:
      name: folder name, unique in the data set.
      split: "train" or "val".
      caption: text that describes the episode.
      fps: frames per second.
      frames: uint8 [T, H, W, 3].
      actions: for each frame, the keys that led to it: "none" or words of `DIRECTIONS` joined by "+". They are held for
        the frames 4i-3..4i; frame 0 has "none".
      w2c: float64 [T, 4, 4].
      intrinsics: float64 [T, 4], (fx, fy, cx, cy) divided by the image size.
    """

    name: str
    split: str
    caption: str
    fps: float
    frames: np.ndarray
    actions: list[str]
    w2c: np.ndarray
    intrinsics: np.ndarray


def video_file(view: str = "") -> str:
    """Return the name of an episode's video; `view` names a further camera."""
    return f"video_{view}.mp4" if view else "video.mp4"


def write_episode(
    directory: str | pathlib.Path, episode: Episode, others: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write `directory/<name>/` atomically: the folder gets its name when it is complete.

    `others` are frames like those of the episode from further cameras, by name.
    """
    folder = pathlib.Path(directory) / episode.name
    frames, height, width, _ = episode.frames.shape
    if len(episode.actions) != frames or len(episode.w2c) != frames or len(episode.intrinsics) != frames:
        raise ValueError(f"episode {episode.name} has {frames} frames but other numbers of actions or cameras")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for view, video in {"": episode.frames, **(others or {})}.items():
        write_video(partial / video_file(view), video, fps=episode.fps)
    facts = describe(
        caption=episode.caption,
        fps=episode.fps,
        size=(width, height),
        actions=episode.actions,
        w2c=episode.w2c,
        intrinsics=episode.intrinsics,
    )
    files.write_json(partial / "episode.json", facts, indent=None)
    partial.rename(folder)


def describe(
    *, caption: str, fps: float, size: tuple[int, int], actions: list[str], w2c: np.ndarray, intrinsics: np.ndarray
) -> dict[str, Any]:
    """Return the content of `episode.json`; `size` is (width, height), the others are fields of `Episode`."""
    return {
        "caption": caption,
        "fps": fps,
        "frames": len(actions),
        "width": size[0],
        "height": size[1],
        "actions": actions,
        "w2c": np.round(w2c, 9).tolist(),
        "intrinsics": np.round(intrinsics, 9).tolist(),
    }


def read_episode(directory: str | pathlib.Path, name: str) -> Episode:
    """Read an episode of the data set in `directory`; a `UserError` if a file is absent or inconsistent."""
    folder = pathlib.Path(directory) / name
    entries = [entry for entry in read_manifest(directory)["episodes"] if entry["name"] == name]
    if not entries:
        raise errors.UserError(
            f"{pathlib.Path(directory) / MANIFEST} has no episode {name!r}, "
            f"expected one of its {len(read_manifest(directory)['episodes'])} names"
        )
    facts = _read_json(folder / "episode.json")
    path = folder / "video.mp4"
    frames = read_video(path)
    expected = tuple(_key(facts, key, folder / "episode.json") for key in ("frames", "height", "width"))
    if frames.shape[:3] != expected:
        raise errors.UserError(
            f"{path} holds {frames.shape[0]} frames of {frames.shape[2]}x{frames.shape[1]}, expected "
            f"{expected[0]} of {expected[2]}x{expected[1]} as in episode.json; record the data set again"
        )
    actions = _key(facts, "actions", folder / "episode.json")
    w2c = _numbers(facts, "w2c", (len(frames), 4, 4), folder / "episode.json")
    intrinsics = _numbers(facts, "intrinsics", (len(frames), 4), folder / "episode.json")
    if len(actions) != len(frames):
        raise errors.UserError(
            f"{folder / 'episode.json'}: {len(actions)} actions, expected one per frame ({len(frames)})"
        )
    return Episode(
        name=name,
        split=entries[0]["split"],
        caption=facts["caption"],
        fps=facts["fps"],
        frames=frames,
        actions=actions,
        w2c=w2c,
        intrinsics=intrinsics,
    )


def write_manifest(
    directory: str | pathlib.Path,
    *,
    source: str,
    seed: int,
    fps: float,
    width: int,
    height: int,
    episodes: list[dict[str, Any]],
    views: list[list[Any]] | None = None,
) -> None:
    """Write `directory/manifest.json`; `episodes` are dicts with the keys name, split, frames, caption.

    `views` are pairs of name and yaw in degrees of several cameras, of which the first has the video of an episode.
    """
    checksums.write_json(
        pathlib.Path(directory) / MANIFEST,
        {
            "format": FORMAT,
            "version": VERSION,
            "source": source,
            "seed": seed,
            "fps": fps,
            "width": width,
            "height": height,
            "camera_convention": CAMERA_CONVENTION,
            **({} if views is None else {"views": views}),
            "episodes": episodes,
        },
    )


def read_manifest(directory: str | pathlib.Path) -> dict[str, Any]:
    """Read the manifest of a data set; a `UserError` if it is absent or has another format or camera convention."""
    path = pathlib.Path(directory) / MANIFEST
    if not path.is_file():
        raise errors.UserError(
            f"{path} is absent, expected recorded episodes; record some with "
            f"python scripts/record_episodes.py --output {directory}"
        )
    manifest = checksums.read_json(path, fix="record the data set again")
    for key, expected in (("format", FORMAT), ("version", VERSION), ("camera_convention", CAMERA_CONVENTION)):
        if manifest.get(key) != expected:
            raise errors.UserError(
                f"{path}: {key} is {manifest.get(key)!r}, expected {expected!r}; record the data set again"
            )
    for entry in _key(manifest, "episodes", path):
        for key in ("name", "split", "frames", "caption"):
            _key(entry, key, path)
    return manifest


def write_video(path: str | pathlib.Path, frames: np.ndarray, *, fps: float) -> None:
    """Encode frames uint8 [T, H, W, 3] (even H and W) as H.264; the same frames give the same bytes.

    Raises:
      OSError: the file cannot be written, for example because the disk is full; a part of it may be there.
    """
    _, height, width, _ = frames.shape
    if width % 2 or height % 2:
        raise ValueError(f"video size {width}x{height} is not even")
    # With more threads the bytes would depend on the load of the machine, and with version strings on the encoder.
    bitexact = ["-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1"]
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    coding = ["-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "10", "-preset", "veryfast"]
    try:
        _ffmpeg("-y", *source, *coding, *bitexact, ffmpeg.name(path), data=np.ascontiguousarray(frames).tobytes())
    except subprocess.CalledProcessError as error:
        printed = error.stderr.decode(errors="replace")
        full = next((code for code in errors.DISK_FULL if os.strerror(code) in printed), None)
        # The encoder itself is ended where a file is larger than this user may write.
        full = errno.EFBIG if error.returncode == -signal.SIGXFSZ else full
        reason = os.strerror(full) if full else " ".join(printed.split())[:200] or "the encoder failed"
        raise OSError(full or errno.EIO, reason, str(path)) from error


def read_video(path: str | pathlib.Path) -> np.ndarray:
    """Read all frames of a video, uint8 [T, H, W, 3]."""
    if not pathlib.Path(path).is_file():
        raise errors.UserError(f"{path} is absent, expected the video of an episode; record the data set again")
    try:
        # Every image has its own header with the size: "P6\n<width> <height>\n255\n".
        stream = _ffmpeg(*ffmpeg.source(path), "-c:v", "ppm", "-f", "image2pipe", "-")
        header = b"\n".join(stream.split(b"\n", 3)[:3]) + b"\n"
        width, height = map(int, header.split()[1:3])
        frames = np.frombuffer(stream, np.uint8).reshape(-1, len(header) + 3 * width * height)
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise errors.UserError(f"{path} is not a readable video; record the data set again") from error
    return frames[:, len(header) :].reshape(-1, height, width, 3)


def _ffmpeg(*arguments: str, data: bytes | None = None) -> bytes:
    """Run ffmpeg with `data` as its input and return its output.

    The readers and writers of imageio_ffmpeg are avoided: their preexec_fn forks a process in which JAX runs threads.
    """
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-loglevel", "error", *arguments]
    # In a group of its own, so that Ctrl-C does not reach it.
    return subprocess.run(command, input=data or b"", capture_output=True, check=True, process_group=0).stdout


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    value: dict[str, Any] = files.read_json(path, fix="record the data set again")
    return value


def _key(facts: dict[str, Any], key: str, path: pathlib.Path) -> Any:
    if key not in facts:
        raise errors.UserError(f"{path} lacks the key {key!r}; record the data set again")
    return facts[key]


def _numbers(facts: dict[str, Any], key: str, shape: tuple[int, ...], path: pathlib.Path) -> np.ndarray:
    try:
        value = np.asarray(_key(facts, key, path), np.float64)
    except ValueError as error:
        raise errors.UserError(f"{path}: {key} is not an array of numbers; record the data set again") from error
    if value.shape != shape:
        raise errors.UserError(f"{path}: {key} has shape {value.shape}, expected {shape}; record the data set again")
    return value
