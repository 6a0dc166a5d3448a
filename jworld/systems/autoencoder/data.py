"""Training clips for autoencoders: windows of video frames. Videos are decoded once and mapped into memory.

DIR/manifest.json lists one file per video and split: a NumPy file, uint8 [T, H, W, 3]. All videos have one size.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import grain
import jax
import ml_collections
import numpy as np
import rich.console
import rich.progress

from jworld.data import pipeline, records, training_data
from jworld.data.inputs import clips, fitting, formats
from jworld.data.recording import recorder
from jworld.data.records import content
from jworld.utils import checksums, files, folder_lock, indices, notes, outputs, ranges
from jworld.utils import config as run_config
from jworld.utils.errors import UserError

FORMAT, VERSION = "jworld-frames", 1
MORE_HELD_OUT = "raise config.data.videos.val_share, and choose another config.data.records"
#: Videos whose first frame is part of the set's identity, at most.
CHECKED = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideosConfig:
    """The videos, and the size of their frames (`config.data.videos`).

    Attributes:
      format: format of the folder `path`, one of those that `python -m jworld.precompute` reads.
      path: folder of the videos; "" is that of `config.data.recording`.
      more_paths: further folders of the same format. A folder that is named twice counts twice.
      image_size: width and height of the frames, in pixels.
      fit: "crop" keeps proportions and crops around the center, "stretch" keeps the whole view.
      val_share: share of videos that are held out, for formats without a split.
    """

    format: str = "episodes"
    path: str = ""
    more_paths: tuple[str, ...] = ()
    image_size: tuple[ranges.Pixels, ranges.Pixels] = (64, 48)
    fit: Literal["crop", "stretch"] = "crop"
    val_share: ranges.ShareBelowOne = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """The part of a video in one example (`config.data.clip`).

    Attributes:
      frames: number of frames.
      size: width and height, in pixels.
    """

    frames: ranges.Frames = 9
    size: tuple[ranges.Pixels, ranges.Pixels] = (32, 32)


class FrameFiles:
    """The decoded videos of a folder; `fps` is the frame rate of the first video, a held-out one if there are any.

    Raises:
      UserError: the folder holds no decoded videos.
    """

    def __init__(self, directory: str | pathlib.Path) -> None:
        self.directory = pathlib.Path(directory)
        path = self.directory / records.MANIFEST
        self.manifest = checksums.read_json(path, fix="correct config.data.records, or train to make the frames")
        try:
            self.fps: float = [*self.manifest["videos"]["val"], *self.manifest["videos"]["train"]][0]["fps"]
            self.image_size = tuple(self.manifest["image_size"])
            found = self.manifest["format"], self.manifest["version"]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise UserError(
                f"{path} is not a manifest of decoded videos: choose another config.data.records"
            ) from error
        if found != (FORMAT, VERSION):
            raise UserError(
                f"{path}: format is {found[0]!r} {found[1]!r}, expected {FORMAT!r} {VERSION}: remove the folder, "
                "or choose another config.data.records"
            )

    def lengths(self, split: str) -> list[int]:
        """Return the number of frames of every video.

        Raises:
          UserError: the split has no videos.
        """
        if not self.manifest["videos"][split]:
            raise UserError(f"{self.directory}: split '{split}' has no videos: {MORE_HELD_OUT}")
        return [entry["frames"] for entry in self.manifest["videos"][split]]

    def name(self, split: str, number: int) -> str:
        """Return the name of a video."""
        return str(self.manifest["videos"][split][number]["name"])

    def identity(self) -> str:
        """Return the identity of the set, from its manifest and the first frames of some videos."""
        videos = [(split, number) for split in records.SPLITS for number in range(len(self.manifest["videos"][split]))]
        picked = (videos[i] for i in indices.evenly(len(videos), CHECKED))
        return content.combined(self.manifest, (self.read(*video)[0].tobytes() for video in picked))

    def read(self, split: str, number: int) -> np.ndarray:
        """Return the frames of a video, uint8 [T, H, W, 3], mapped into memory: only the used part is read."""
        entry = self.manifest["videos"][split][number]
        path = self.directory / entry["file"]
        width, height = self.image_size
        try:
            frames: np.ndarray = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} is absent or damaged ({error}): remove {self.directory} and train again"
            ) from error
        if frames.shape != (entry["frames"], height, width, 3) or frames.dtype != np.uint8:
            raise UserError(
                f"{path} holds {frames.dtype} {list(frames.shape)}, expected uint8 "
                f"{[entry['frames'], height, width, 3]}: remove {self.directory} and train again"
            )
        return frames


def decode(output: str | pathlib.Path, videos: VideosConfig, *, console: rich.console.Console | None = None) -> None:
    """Decode all videos into `output`, which appears when it is complete. One video at a time is in memory.

    Raises:
      UserError: a video cannot be used, or none is for training.
    """
    output = pathlib.Path(output)
    width, height = videos.image_size
    folders = (videos.path, *videos.more_paths)
    listings = [formats.list_items(videos.format, folder, val_share=videos.val_share) for folder in folders]
    found = [item for listing in listings for item in listing.items]
    fit = fitting.Fit(width=width, height=height, mode=videos.fit, resampling="area")
    cut = clips.CutConfig(fit=fit, temporal_ratio=1)
    entries: dict[str, list[dict[str, Any]]] = {split: [] for split in records.SPLITS}
    with outputs.partial_folder(output, fix="free space or change config.data.records") as partial:
        for item in rich.progress.track(found, "decoding videos", console=console):
            for clip in clips.read_clips(item, cut):
                written = entries[clip.split]
                file = f"{clip.split}-{len(written):05d}.npy"
                np.save(partial / file, clip.frames)
                written.append({"name": clip.item, "file": file, "frames": len(clip.frames), "fps": clip.fps})
        if not entries["train"]:
            raise UserError(f"{', '.join(folders)}: no video has split 'train', expected at least one: add videos")
        if not entries["val"]:
            notes.warn(f"no video is held out, so the trained model cannot be measured: {MORE_HELD_OUT}")
        facts = {"format": FORMAT, "version": VERSION, "image_size": list(videos.image_size), "videos": entries}
        checksums.write_json(partial / records.MANIFEST, facts)
        partial.rename(output)


class Videos:
    """A source of videos: {"frames": [T, H, W, 3], "index": number of the video}.

    A video occurs once for each whole clip of `frames` frames that it has.
    """

    def __init__(self, files: FrameFiles, split: str, *, frames: int) -> None:
        self._files, self._split = files, split
        lengths = files.lengths(split)
        if min(lengths) < frames:
            name = files.name(split, int(np.argmin(lengths)))
            raise UserError(
                f"video '{name}' of {files.directory} has {min(lengths)} frames, config.data.clip.frames is {frames}: "
                "lower it, or remove short videos"
            )
        counts = np.array(lengths) // frames
        # Videos take turns, so that a few batches in order have clips of many videos.
        self._numbers = np.concatenate([np.flatnonzero(counts > turn) for turn in range(counts.max())])

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> records.Record:
        number = int(self._numbers[index])
        return {"frames": self._files.read(self._split, number), "index": np.int32(number)}  # type: ignore[dict-item]


class CutClip(grain.transforms.RandomMap):
    """A random crop in time and space: element of `Videos` -> {"video": uint8 [T, H, W, 3], "index"}."""

    def __init__(self, clip: ClipConfig) -> None:
        self._clip = clip

    def random_map(self, element: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Return a clip of {"record": element of `Videos`, "position"}."""
        frames = element["record"]["frames"]
        width, height = self._clip.size
        sizes = (self._clip.frames, height, width)
        start, top, left = (rng.integers(whole - part + 1) for whole, part in zip(frames.shape, sizes, strict=False))
        cut = frames[start : start + self._clip.frames, top : top + height, left : left + width]
        return {"video": np.ascontiguousarray(cut), "index": element["record"]["index"]}


class DecodedVideos:
    """A `TrainingData` of frames in `config.data.records`, which are recorded and decoded if absent."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        *,
        spec: training_data.Spec,
        finish: Callable[[], None] | None = None,
    ) -> None:
        """Read the config; `finish` is called when the frames are there, in one process."""
        self._config, self._spec, self._finish = config, spec, finish
        self._recording = run_config.section(recorder.RecordingConfig, config.data.recording, "data.recording")
        self.videos = run_config.section(VideosConfig, config.data.videos, "data.videos")
        self.clip = run_config.section(ClipConfig, config.data.clip, "data.clip")
        for cut, whole, name in zip(self.clip.size, self.videos.image_size, ("width", "height"), strict=True):
            if not 0 < cut <= whole:
                raise UserError(
                    f"config.data.clip.size has {name} {cut}, expected at most the {whole} of "
                    "config.data.videos.image_size"
                )

    def prepare(self) -> None:
        """See `systems.base.TrainingData`."""
        output = pathlib.Path(self._config.data.records)
        if not (output / records.MANIFEST).is_file():
            self._prepare_frames(output)
        if self._finish is not None:
            self._finish()

    def _prepare_frames(self, output: pathlib.Path) -> None:
        if not (self._recording.source or self.videos.path):
            raise UserError(
                f"config.data.records: the folder {output} has no frames: set config.data.videos.path to a folder of "
                "videos and config.data.videos.format to its format"
            )
        with folder_lock.making(output):
            # Another process may have finished it in the meantime.
            if not (output / records.MANIFEST).is_file():
                self._make(output)

    def _make(self, output: pathlib.Path) -> None:
        if not self.videos.path:
            self._recording.record()
        videos = dataclasses.replace(self.videos, path=self.videos.path or self._recording.directory)
        console = rich.console.Console(highlight=False, soft_wrap=True)
        decode(output, videos, console=console)
        console.print(f"decoded the videos of {', '.join((videos.path, *videos.more_paths))} into {output}")

    def open(self) -> FrameFiles:
        """Open the frames; a `UserError` if their size differs from the config."""
        files = FrameFiles(self._config.data.records)
        if files.image_size != self.videos.image_size:
            raise UserError(
                f"{files.directory} holds frames of {files.image_size}, config.data.videos.image_size is "
                f"{self.videos.image_size}: change it, or choose another config.data.records"
            )
        return files

    def batches(self, split: str) -> pipeline.BatchIterator:
        """See `systems.base.TrainingData`."""
        files = self.open()
        source, transform = Videos(files, split, frames=self.clip.frames), CutClip(self.clip)
        identity = files.identity()
        return training_data.batches(self._config, source, transform, self._spec, split=split, content=identity)

    def keep(self, directory: pathlib.Path) -> None:
        """See `systems.base.TrainingData`: the manifest, which has the frame rate."""
        directory.mkdir(parents=True, exist_ok=True)
        files.copy(self.open().directory / records.MANIFEST, directory / records.MANIFEST)

    def check_kept(self, directory: pathlib.Path) -> None:
        """See `systems.base.TrainingData`: an autoencoder accepts any frames."""

    def find_problem(self, directory: pathlib.Path) -> str:
        """See `systems.base.TrainingData`: only frames are needed."""
        return ""

    def encoders(
        self, directory: pathlib.Path, *, given: Any, mesh: jax.sharding.Mesh, stored: bool = False
    ) -> FrameFiles:
        """See `systems.base.TrainingData`; a `UserError` if the user names encoders, which would not be used."""
        if given.flags():
            raise UserError(
                f"{', '.join(given.flags())}: the checkpoint is an autoencoder, which is measured on frames and uses "
                "no encoders: leave the option out"
            )
        return FrameFiles(directory)
