"""Recorded walks as the truth of a rollout: what to tell the model, and how to compare what it answers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np

from jworld import config as run_config
from jworld import errors, reports
from jworld.cameras import actions, poses
from jworld.data import episodes, records
from jworld.data.recording import recorder
from jworld.encoders import Encoders
from jworld.models.autoencoders import linear
from jworld.systems.worldplay.latents import Controls
from jworld.systems.worldplay.session import Session

STRIDE = actions.FRAMES_PER_LATENT
#: No picture of whole numbers comes closer to its source than rounding does: an error of 1/12 per value.
BEST_PSNR = float(10 * np.log10(255**2 * 12))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
    """A recorded walk of F latents: frames uint8 [1 + 4 (F - 1), H, W, 3] of the model's size, prompt, controls."""

    name: str
    frames: np.ndarray
    prompt: str
    controls: Controls

    @property
    def latents(self) -> int:
        return len(self.controls.action)


def from_episode(episode: episodes.Episode, encoders: Encoders) -> Clip:
    """A raw episode, resized to the model's size; latent i has the camera of frame 4i."""
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
    """A training record: its decoded latents are the truth, its labels and cameras the controls."""
    record = source[index]
    frames = encoders.autoencoder.decode(record["latent"].astype(np.float32)[None])[0]
    return Clip(
        name=source.episodes[index],
        frames=frames,
        prompt=source.manifest["prompts"][int(record["prompt"])],
        controls=Controls(record["action"], record["w2c"], record["intrinsics"]),
    )


def window(clip: Clip, *, start: int, latents: int) -> Clip:
    """`latents` latents of a clip from latent `start`, told as a walk of its own: the first camera is the origin."""
    part = slice(start, start + latents)
    action, w2c, intrinsics = (np.asarray(values)[part] for values in clip.controls)
    action = action.astype(np.int32)
    action[0] = 0
    return Clip(
        name=clip.name,
        frames=clip.frames[STRIDE * start : STRIDE * (start + latents - 1) + 1],
        prompt=clip.prompt,
        controls=Controls(action, poses.relative_to_first(w2c).astype(np.float32), intrinsics.astype(np.float32)),
    )


def swapped(controls: Controls) -> Controls:
    """The same walk with left and right exchanged."""
    action, w2c = actions.swap_left_right(controls.action, controls.w2c)
    return controls._replace(action=action, w2c=w2c)


def roll_out(session: Session, first_frame: np.ndarray, prompt: str, controls: Controls, *, seed: int) -> np.ndarray:
    """Controls of F latents, whole chunks -> frames uint8 [1 + 4 (F - 1), H, W, 3]."""
    chunks = split(controls, session.chunk_frames)
    session.reset(first_frame, prompt, seed=seed)
    return np.concatenate([session.step(chunk) for chunk in chunks])


def split(controls: Controls, size: int) -> list[Controls]:
    """Controls of F latents in chunks of `size`."""
    count = len(controls.action)
    if count % size:
        raise ValueError(f"{count} latents are no multiple of chunks of {size}")
    return [Controls(*(values[i : i + size] for values in controls)) for i in range(0, count, size)]


def action_names(labels: np.ndarray) -> str:
    """What is done in one chunk, in words; label 0 of the first latent of all, none, is to be left out."""
    return ", ".join(dict.fromkeys(actions.label_name(int(label)) for label in labels))


def chunk_frames(latents: int, size: int) -> list[tuple[int, int]]:
    """First frame and end of every chunk of `size` latents: the first latent is one frame, the others are four."""
    return [(max(STRIDE * (i - 1) + 1, 0), STRIDE * (i + size - 1) + 1) for i in range(0, latents, size)]


def psnr(truth: np.ndarray, prediction: np.ndarray) -> float:
    """PSNR (dB) of uint8 arrays of one shape, at most `BEST_PSNR`."""
    return min(linear.psnr(truth, prediction), BEST_PSNR)


def chunk_psnr(truth: np.ndarray, prediction: np.ndarray, size: int) -> list[float]:
    """PSNR (dB) of every chunk of `size` latents of two videos; frame 0 was given and is not counted."""
    spans = chunk_frames(1 + (len(truth) - 1) // STRIDE, size)
    return [psnr(truth[max(start, 1) : stop], prediction[max(start, 1) : stop]) for start, stop in spans]


def compare(clip: Clip, prediction: np.ndarray, size: int, *, title: str = "") -> reports.Comparison:
    """Truth and prediction in chunks of `size` latents, ready to be drawn."""
    values = chunk_psnr(clip.frames, prediction, size)
    chunks = []
    for i, (start, stop) in enumerate(chunk_frames(clip.latents, size)):
        # The label of latent 0 is none, whatever follows.
        names = action_names(clip.controls.action[max(size * i, 1) : size * (i + 1)])
        chunks.append(reports.Chunk(start=start, stop=stop, action=names, psnr=values[i]))
    return reports.Comparison(title=title, truth=clip.frames, prediction=prediction, chunks=chunks)


def parse_script(script: str, *, chunk_frames: int) -> list[str]:
    """ "forward*6,yaw_right*9" -> the action of every latent after the first; with it they are whole chunks.

    `chunk_frames` latents are made together.

    Raises:
      UserError: an unknown action, a number that is none, or a length that does not fit.
    """
    allowed = ("none", *episodes.DIRECTIONS)
    expected = f"expected <action>*<latents> with an action of {', '.join(allowed)}, or several joined by '+'"
    steps: list[str] = []
    for token in script.split(","):
        action, star, count = token.strip().partition("*")
        if not set(action.split("+")) <= set(allowed):
            raise errors.UserError(f"config.sample.actions: found {token.strip()!r}, {expected}")
        if star and not (count.isdecimal() and int(count) > 0):
            raise errors.UserError(f"config.sample.actions: found {token.strip()!r}, {expected}")
        steps += [action] * (int(count) if star else 1)
    if (len(steps) + 1) % chunk_frames:
        raise errors.UserError(
            f"config.sample.actions has {len(steps)} latents, and {len(steps) + 1} with the first frame is no multiple "
            f"of the {chunk_frames} that are made together: add {-(len(steps) + 1) % chunk_frames} latents"
        )
    return steps


def recording_config(config: ml_collections.ConfigDict) -> recorder.RecordingConfig:
    return run_config.section(recorder.RecordingConfig, config.data.recording, "data.recording")


def scripted_clip(recording: recorder.RecordingConfig, encoders: Encoders, script: Sequence[str], *, seed: int) -> Clip:
    """The truth of a script on a held-out map of the source that the run was recorded from."""
    width, height = recording.image_size
    episode = recorder.record_scripted(recording.source, seed=seed, actions=list(script), width=width, height=height)
    return window(from_episode(episode, encoders), start=0, latents=1 + len(script))


def sample(session: Session, config: ml_collections.ConfigDict) -> reports.Comparison:
    """Roll out `config.sample`: its script on a held-out map, or, on data of the user's own, a held-out walk."""
    settings: Any = config.sample
    script = parse_script(settings.actions, chunk_frames=session.chunk_frames)
    recording = recording_config(config)
    if recording.source:
        clip = scripted_clip(recording, session.encoders, script, seed=settings.seed)
    else:
        source = records.RecordSource(config.data.records, "val", min_frames=session.chunk_frames)
        whole = from_record(source, 0, session.encoders)
        latents = min(whole.latents, 1 + len(script)) // session.chunk_frames * session.chunk_frames
        clip = window(whole, start=0, latents=latents)
    frames = roll_out(session, clip.frames[0], clip.prompt, clip.controls, seed=settings.seed)
    return compare(clip, frames, session.chunk_frames)
