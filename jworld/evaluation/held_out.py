"""Held-out episodes with their cameras, which are the ground truth for a model's videos."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from jworld.cameras import actions, poses
from jworld.data import camera_grids, records
from jworld.data.recording import episodes, recorder
from jworld.encoders import model_encoders as encoders_lib
from jworld.encoders.model_encoders import Encoders
from jworld.evaluation import results
from jworld.models.autoencoders import linear
from jworld.utils import config as run_config
from jworld.utils import errors, indices

STRIDE = actions.FRAMES_PER_LATENT
#: Names of measurements: the model, the model with mirrored controls, and the autoencoder as the upper bound.
MODEL, SWAPPED, AUTOENCODER = "model", "left and right swapped", "autoencoder alone"
#: What tiny recipes record.
NEW_ROOMS = {"source": "rooms", "directory": "data/rooms/episodes", "episodes": 64, "seed": 1}
#: PSNR of rounding to integers, whose mean squared error is 1/12: the upper bound for uint8 images.
BEST_PSNR = float(10 * np.log10(255**2 * 12))


class Controls(NamedTuple):
    """Controls of f latents: action labels [f], w2c [f, 4, 4], intrinsics [f, 3, 3] divided by the image size."""

    action: np.ndarray
    w2c: np.ndarray
    intrinsics: np.ndarray


class FirstImage(NamedTuple):
    """States of a clip's first frame as records store them: latent [1, h, w, C], vision states [V, Dv] or None."""

    latent: np.ndarray
    vision: np.ndarray | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """A recorded episode of F latents.

    Attributes:
      name: name of the episode.
      frames: uint8 [1 + 4 (F - 1), H, W, 3] of the model's size.
      prompt: caption, or its key in the text store of the data set.
      controls: actions and cameras, if they were recorded.
      tokens: recorded driving tokens [F], as indices into the manifest's `controls`, if there are any.
      motion: recorded motion or commands of a robot [4 (F - 1), A], if there are any.
      first: stored states of the first frame, if the clip starts where its record does.
    """

    name: str
    frames: np.ndarray
    prompt: str
    controls: Controls | None = None
    tokens: np.ndarray | None = None
    motion: np.ndarray | None = None
    first: FirstImage | None = None

    @property
    def latents(self) -> int:
        """Latent frames F."""
        return 1 + (len(self.frames) - 1) // STRIDE

    @property
    def camera_controls(self) -> Controls:
        """The controls of a clip of a model that needs them.

        Raises:
          UserError: no cameras or actions were recorded.
        """
        if self.controls is None:
            raise errors.UserError(
                f"the held-out clip {self.name} has no cameras and actions, which the model needs: make the records "
                "from a format that has them"
            )
        return self.controls


def from_episode(episode: episodes.Episode, encoders: Encoders) -> Clip:
    """Make a clip from a raw episode, resized to the model's size; latent i has the camera of frame 4i."""
    w2c = episode.w2c[::STRIDE]
    size = (episode.frames.shape[2], episode.frames.shape[1])
    controls = Controls(
        actions.labels_from_poses(w2c, min_translation=actions.TRAINING_MIN_TRANSLATION),
        w2c,
        encoders.fit.intrinsics(poses.intrinsics_matrices(episode.intrinsics[::STRIDE]), size),
    )
    frames = np.stack([encoders.fit.frame(frame) for frame in episode.frames[: 1 + STRIDE * (len(w2c) - 1)]])
    return Clip(name=episode.name, frames=frames, prompt=episode.caption, controls=controls)


def from_record(source: records.RecordSource, index: int, encoders: Encoders) -> Clip:
    """Make a clip from a record: its decoded latents are the truth, and the arrays that it has are the conditioning.

    Several cameras are a grid, see `camera_grids`, and their captions a line each.
    """
    record = source[index]
    latent = record["latent"].astype(np.float32)
    prompts, vision = source.manifest["prompts"], record.get("vision_states")
    rows = np.ravel(record.get("prompt", ()))
    if latent.ndim == 5:
        # Several cameras.
        frames = camera_grids.join(np.concatenate([encoders.autoencoder.decode(view[None]) for view in latent]))
        rows = record.get("view_prompts", rows)
    else:
        frames = encoders.autoencoder.decode(latent[None])[0]
    has_cameras = {"action", "w2c", "intrinsics"} <= record.keys()
    return Clip(
        name=source.episodes[index],
        frames=frames,
        prompt="\n".join(prompts[int(row)] for row in rows),
        controls=Controls(record["action"], record["w2c"], record["intrinsics"]) if has_cameras else None,
        tokens=record.get("control"),
        motion=record.get("motion"),
        first=FirstImage(
            record["image_cond"].astype(np.float32), None if vision is None else vision.astype(np.float32)
        ),
    )


def window(clip: Clip, *, start: int, latents: int) -> Clip:
    """Return `latents` latents of a clip from latent `start` as a new clip; its first camera is the origin."""
    part, moves = slice(start, start + latents), slice(STRIDE * start, STRIDE * (start + latents - 1))
    controls = None
    if clip.controls is not None:
        action, w2c, intrinsics = (np.asarray(values)[part] for values in clip.controls)
        action = action.astype(np.int32)
        action[0] = 0
        controls = Controls(action, poses.relative_to_first(w2c).astype(np.float32), intrinsics.astype(np.float32))
    return Clip(
        name=clip.name,
        frames=clip.frames[STRIDE * start : STRIDE * (start + latents - 1) + 1],
        prompt=clip.prompt,
        controls=controls,
        tokens=None if clip.tokens is None else clip.tokens[part],
        motion=None if clip.motion is None else clip.motion[moves],
        first=clip.first if start == 0 else None,
    )


def with_prompt(clip: Clip, prompt: results.Prompt | None, encoders: Encoders) -> Clip:
    """Return a clip with the caption of the user, and with the image of the user, if there is one, as all its frames.

    Without `prompt` it is the clip itself.
    """
    if prompt is None:
        return clip
    if prompt.image is None:
        return dataclasses.replace(clip, prompt=prompt.text)
    frames = np.broadcast_to(encoders.resize(prompt.image), clip.frames.shape)
    return dataclasses.replace(clip, prompt=prompt.text, frames=frames, first=None)


def shown(comparison: results.Comparison, prompt: results.Prompt | None) -> results.Comparison:
    """Return a comparison without truth under the caption of the user; without `prompt`, the comparison itself."""
    if prompt is None:
        return comparison
    chunks = [dataclasses.replace(chunk, psnr=None) for chunk in comparison.chunks]
    return dataclasses.replace(comparison, title=prompt.text, truth=None, chunks=chunks)


def chunk_frames(latents: int, size: int) -> list[tuple[int, int]]:
    """Return (first frame, end) of every chunk of `size` latents; latent 0 has one frame, the others have four."""
    return [(max(STRIDE * (i - 1) + 1, 0), STRIDE * (i + size - 1) + 1) for i in range(0, latents, size)]


def generated_frames(latents: int, size: int) -> list[tuple[int, int]]:
    """Return the frames of `chunk_frames` without frame 0, which is an input of the model."""
    return [(max(start, 1), stop) for start, stop in chunk_frames(latents, size)]


def psnr(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return the PSNR in dB of uint8 arrays of equal shape, at most `BEST_PSNR`."""
    return min(linear.psnr(truth, prediction), BEST_PSNR)


def chunk_psnr(truth: np.ndarray, prediction: np.ndarray, size: int) -> list[float]:
    """Return the PSNR in dB of the generated frames of every chunk of `size` latents."""
    spans = generated_frames(1 + (len(truth) - 1) // STRIDE, size)
    return [psnr(truth[start:stop], prediction[start:stop]) for start, stop in spans]


def recording_config(config: ml_collections.ConfigDict) -> recorder.RecordingConfig:
    """Return the section `config.data.recording`."""
    return run_config.section(recorder.RecordingConfig, config.data.recording, "data.recording")


def use_episodes(config: ml_collections.ConfigDict, directory: str) -> None:
    """Replace the raw episodes of a config by those in `directory`, and its simulator by the one that recorded them."""
    recording = config.data.recording
    recording.directory = directory
    # Scripted paths are compared with the results of these episodes, so they belong in the same world.
    if recording.get("source") and (pathlib.Path(directory) / episodes.MANIFEST).is_file():
        source = episodes.read_manifest(directory).get("source")
        recording.source = source if source in recorder.SOURCES else recording.source


def use_new_rooms(config: ml_collections.ConfigDict) -> None:
    """Replace absent data of weights trained on simulated worlds by those that tiny recipes record: a few new rooms.

    The episodes that released weights were trained on take long to record, and the weights know them.
    """
    recording, encoding = config.data.get("recording", {}), config.data.get("encoding", {})
    if not (recording.get("source") and encoding) or (pathlib.Path(config.data.records) / records.MANIFEST).is_file():
        return
    recording.update(NEW_ROOMS)
    frames = encoding.get("clip_frames", 0)
    config.data.records = "data/rooms/records" + (f"-{frames}frames" if frames else "")


def scripted_clip(recording: recorder.RecordingConfig, encoders: Encoders, script: Sequence[str], *, seed: int) -> Clip:
    """Record a script on a held-out map of the source of the run's data."""
    width, height = recording.image_size
    episode = recorder.record_scripted(recording.source, seed=seed, actions=list(script), width=width, height=height)
    return window(from_episode(episode, encoders), start=0, latents=1 + len(script))


def held_out(config: ml_collections.ConfigDict, encoders: Encoders) -> tuple[list[int], Callable[[int], Clip]]:
    """Return (latents of every held-out episode, function that loads one), from raw episodes or else from records."""
    recording = recording_config(config)
    # Raw episodes of several cameras are not read.
    if not recording.source or recording.views:
        source = records.RecordSource(config.data.records, "val")
        encoders_lib.check_latents(source.manifest, encoders.autoencoder, path=config.data.records)
        return source.clips, lambda index: from_record(source, index, encoders)
    directory = recording.directory
    _require_episodes(recording)
    entries = [entry for entry in episodes.read_manifest(directory)["episodes"] if entry["split"] == "val"]

    @functools.lru_cache(maxsize=1)  # the windows of an episode are consecutive
    def load(index: int) -> Clip:
        return from_episode(episodes.read_episode(directory, entries[index]["name"]), encoders)

    return [1 + (entry["frames"] - 1) // STRIDE for entry in entries], load


def _require_episodes(recording: recorder.RecordingConfig) -> None:
    if not (pathlib.Path(recording.directory) / episodes.MANIFEST).is_file():
        width, height = recording.image_size
        raise errors.UserError(
            f"config.data.recording.directory: the folder {recording.directory} has no episodes; record them with "
            f"python scripts/record_episodes.py --source {recording.source} --episodes {recording.episodes} "
            f"--frames {recording.frames} --size {width}x{height} --seed {recording.seed} "
            f"--output {recording.directory}"
        )


def choose_windows(
    lengths: Sequence[int], *, latents: int, windows: int, starts_only: bool = False
) -> list[tuple[int, int]]:
    """Choose at most `windows` pairs (episode, first latent), evenly over all episodes and within each.

    `lengths` are the latents of the episodes; a window has `latents` of them. With `starts_only`, all start at 0.
    """
    long_enough = [i for i, length in enumerate(lengths) if length >= latents]
    if not long_enough:
        raise errors.UserError(
            f"the longest of {len(lengths)} held-out episodes has {max(lengths, default=0)} latents, expected at least "
            f"{latents}: evaluate fewer --chunks or record longer episodes"
        )
    picked = indices.evenly(len(long_enough), windows)
    episode_indices = [long_enough[i] for i in picked]
    chosen = []
    for position, episode in enumerate(episode_indices):
        share = 1 if starts_only else windows // len(picked) + (position < windows % len(picked))
        starts = np.unique(np.linspace(0, lengths[episode] - latents, share).astype(int))
        chosen += [(episode, int(start)) for start in starts]
    return chosen
