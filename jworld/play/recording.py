"""Recordings of a player: an episode with cameras and actions that `jworld.precompute` reads, or a video alone.

Frames go to the encoder as they come, so that memory does not grow with the length of a recording.
"""

import datetime
import pathlib
import secrets
import shutil

import numpy as np
import scipy.spatial.transform

from jworld.cameras import actions, poses
from jworld.data import video_stream
from jworld.data.recording import episodes
from jworld.play import worker
from jworld.systems import live
from jworld.utils import errors, files, limits

#: Subfolders of a folder of recordings.
EPISODES, VIDEOS = "episodes", "videos"
#: Source that the manifest of the episodes names.
SOURCE = "play"


class Recording:
    """A recording from the frame before the next step, which is its first frame, to `finish`."""

    def __init__(self, folder: pathlib.Path, world: worker.World, last: worker.Step, *, caption: str) -> None:
        """Begin; nothing is at its final place before `finish`.

        Args:
          folder: folder of all recordings.
          world: the model.
          last: latest step, whose last frame is the first one of the recording.
          caption: caption of the episode.

        Raises:
          UserError: the folder cannot be written.
        """
        self._world, self._caption = world, caption
        moment = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
        self.name = f"play-{moment}-{secrets.token_hex(2)}"
        self._folder = folder / (EPISODES if world.viewed else VIDEOS)
        self._partial = self._folder / f"{self.name}.partial"
        try:
            self._partial.mkdir(parents=True)
        except OSError as error:
            raise errors.UserError(
                f"{self._partial} could not be written ({error}): choose other --recordings"
            ) from error
        self._video = video_stream.VideoStream(self._partial / "video.mp4", fps=world.fps)
        self._video.write(last.frames[-1:])
        self._actions = [live.NONE]
        self._words = {key.name: key.word for key in world.keys}
        if last.view is not None:
            self._w2c, self._intrinsics = [last.view.w2c[-1]], [last.view.intrinsics[-1]]

    @property
    def frames(self) -> int:
        """Number of frames so far."""
        return len(self._actions)

    @property
    def is_full(self) -> bool:
        """True if no further step fits."""
        return self.frames >= limits.PLAY_RECORDING

    def add(self, step: worker.Step) -> None:
        """Append a step that follows the previous one; a `UserError` if the video cannot be written."""
        self._video.write(step.frames)
        words = [self._words.get(key, "") for key in step.action.split("+")]
        self._actions += ["+".join(filter(None, words)) or live.NONE] * len(step.frames)
        if step.view is not None:
            cameras = _between(self._w2c[-1], step.view.w2c, actions.FRAMES_PER_LATENT)
            self._w2c += list(cameras)
            self._intrinsics += list(np.repeat(step.view.intrinsics, actions.FRAMES_PER_LATENT, axis=0))

    def finish(self) -> pathlib.Path:
        """Complete the files and return the video; a `UserError` if they cannot be written."""
        self._video.close()
        try:
            if not self._world.viewed:
                target = self._folder / f"{self.name}.mp4"
                (self._partial / "video.mp4").replace(target)
                shutil.rmtree(self._partial)
                return target
            intrinsics = np.stack(self._intrinsics)
            facts = episodes.describe(
                caption=self._caption,
                fps=self._world.fps,
                size=self._world.size,
                actions=self._actions,
                w2c=poses.relative_to_first(np.stack(self._w2c)),
                intrinsics=intrinsics[:, (0, 1, 0, 1), (0, 1, 2, 2)],
            )
            files.write_json(self._partial / "episode.json", facts, indent=None)
            self._partial.rename(self._folder / self.name)
            self._list()
        except OSError as error:
            raise errors.UserError(
                f"{self._folder} could not be written ({error}): choose other --recordings"
            ) from error
        return self._folder / self.name / "video.mp4"

    def cancel(self) -> None:
        """Remove what was written."""
        self._video.__exit__(OSError, None, None)
        shutil.rmtree(self._partial, ignore_errors=True)

    def _list(self) -> None:
        """Add the episode to the manifest of the folder."""
        width, height = self._world.size
        entries = []
        if (self._folder / episodes.MANIFEST).is_file():
            entries = episodes.read_manifest(self._folder)["episodes"]
        # One of eight is held out, as in recorded data sets.
        split = "val" if len(entries) % 8 == 7 else "train"
        entries.append({"name": self.name, "split": split, "frames": self.frames, "caption": self._caption})
        episodes.write_manifest(
            self._folder, source=SOURCE, seed=0, fps=self._world.fps, width=width, height=height, episodes=entries
        )


def _between(before: np.ndarray, w2c: np.ndarray, frames: int) -> np.ndarray:
    """Return the cameras of all frames [f * frames, 4, 4]: latent i has that of its last frame, others lie between."""
    cameras = np.concatenate([before[None], w2c])
    c2w = poses.invert_rigid(cameras)
    times = np.arange(1, len(w2c) * frames + 1) / frames
    rotation = scipy.spatial.transform.Slerp(
        np.arange(len(cameras)), scipy.spatial.transform.Rotation.from_matrix(c2w[:, :3, :3])
    )(times)
    found = np.broadcast_to(np.eye(4), (len(times), 4, 4)).copy()
    found[:, :3, :3] = rotation.as_matrix()
    for axis in range(3):
        found[:, axis, 3] = np.interp(times, np.arange(len(cameras)), c2w[:, axis, 3])
    return poses.invert_rigid(found)
