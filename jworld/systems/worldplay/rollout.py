"""Recorded walks as the truth of a rollout: what to tell the model, and how to compare what it answers."""

from typing import Any

import ml_collections
import numpy as np

from jworld.cameras import actions
from jworld.data import records
from jworld.data.recording import episodes
from jworld.evaluation import held_out, results
from jworld.evaluation.held_out import Controls
from jworld.systems.worldplay.session import Session
from jworld.utils import errors


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


def compare(clip: held_out.Clip, prediction: np.ndarray, size: int, *, title: str = "") -> results.Comparison:
    """Truth and prediction in chunks of `size` latents, ready to be drawn."""
    values = held_out.chunk_psnr(clip.frames, prediction, size)
    chunks = []
    for i, (start, stop) in enumerate(held_out.chunk_frames(clip.latents, size)):
        # The label of latent 0 is none, whatever follows.
        names = action_names(clip.controls.action[max(size * i, 1) : size * (i + 1)])
        chunks.append(results.Chunk(start=start, stop=stop, action=names, psnr=values[i]))
    return results.Comparison(title=title, truth=clip.frames, prediction=prediction, chunks=chunks)


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


def sample(session: Session, config: ml_collections.ConfigDict) -> results.Comparison:
    """Roll out `config.sample`: its script on a held-out map, or, on data of the user's own, a held-out walk."""
    settings: Any = config.sample
    script = parse_script(settings.actions, chunk_frames=session.chunk_frames)
    recording = held_out.recording_config(config)
    if recording.source:
        clip = held_out.scripted_clip(recording, session.encoders, script, seed=settings.seed)
    else:
        source = records.RecordSource(config.data.records, "val", min_frames=session.chunk_frames)
        whole = held_out.from_record(source, 0, session.encoders)
        latents = min(whole.latents, 1 + len(script)) // session.chunk_frames * session.chunk_frames
        clip = held_out.window(whole, start=0, latents=latents)
    frames = roll_out(session, clip.frames[0], clip.prompt, clip.controls, seed=settings.seed)
    return compare(clip, frames, session.chunk_frames)
