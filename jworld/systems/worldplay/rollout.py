"""Rollouts along recorded episodes, and their comparison with the recording."""

import re
from typing import Any

import ml_collections
import numpy as np

from jworld.cameras import actions, lengths
from jworld.cameras.driving import shortened
from jworld.data import records
from jworld.data.recording import episodes
from jworld.evaluation import held_out, results
from jworld.evaluation.held_out import Controls
from jworld.systems.worldplay.session import Session
from jworld.utils import errors


def swapped(controls: Controls) -> Controls:
    """Exchange left and right in the controls of an episode."""
    action, w2c = actions.swap_left_right(controls.action, controls.w2c)
    return controls._replace(action=action, w2c=w2c)


def roll_out(session: Session, clip: held_out.Clip, controls: Controls, *, seed: int) -> np.ndarray:
    """Generate frames uint8 [1 + 4 (F - 1), H, W, 3] from the clip's first one, along F controls in whole chunks."""
    chunks = split(controls, session.chunk_frames)
    session.reset(clip.frames[0], clip.prompt, seed=seed, first=clip.first)
    return np.concatenate([session.step(chunk) for chunk in chunks])


def split(controls: Controls, size: int) -> list[Controls]:
    """Split the controls of F latents into chunks of `size`."""
    count = len(controls.action)
    if count % size:
        raise ValueError(f"{count} latents are not a multiple of chunks of {size}")
    return [Controls(*(values[i : i + size] for values in controls)) for i in range(0, count, size)]


def action_names(labels: np.ndarray) -> str:
    """Return the actions of a chunk in words; leave out the label of the rollout's first latent, which is 0 (none)."""
    return ", ".join(dict.fromkeys(actions.label_name(int(label)) for label in labels))


def compare(clip: held_out.Clip, prediction: np.ndarray, size: int, *, title: str = "") -> results.Comparison:
    """Return truth and prediction in chunks of `size` latents for a contact sheet."""
    values = held_out.chunk_psnr(clip.frames, prediction, size)
    chunks = []
    for i, (start, stop) in enumerate(held_out.chunk_frames(clip.latents, size)):
        # The label of latent 0 is always none.
        names = action_names(clip.camera_controls.action[max(size * i, 1) : size * (i + 1)])
        chunks.append(results.Chunk(start=start, stop=stop, action=names, psnr=values[i]))
    return results.Comparison(title=title, truth=clip.frames, prediction=prediction, chunks=chunks)


def parse_script(script: str, *, chunk_frames: int) -> list[str]:
    """Parse a script such as "forward*6,yaw_right*9" into the action of every latent after the first.

    With the first latent, they must fill whole chunks of `chunk_frames` latents.

    Raises:
      UserError: an action is unknown, a count is not a positive integer, there are more than `lengths.MOST` latents, or
        the length does not fit.
    """
    allowed = ("none", *episodes.DIRECTIONS)
    expected = f"expected <action>*<latents> with an action of {', '.join(allowed)}, or several joined by '+'"
    steps: list[str] = []
    for token in script.split(","):
        action, star, count = token.strip().partition("*")
        if not set(action.split("+")) <= set(allowed) or (star and not re.fullmatch(r"0*[1-9]\d*", count)):
            raise errors.UserError(f"config.sample.actions: found {shortened(token.strip())!r}, {expected}")
        # A number of more digits is too large, and may be too long to be read.
        held = 1 if not star else int(count) if len(count) < 10 else lengths.MOST + 1
        if len(steps) + held > lengths.MOST:
            raise errors.UserError(
                f"config.sample.actions: {shortened(token.strip())!r} makes a script of more than {lengths.MOST:,} "
                "latents: shorten it"
            )
        steps += [action] * held
    if (len(steps) + 1) % chunk_frames:
        raise errors.UserError(
            f"config.sample.actions has {len(steps)} latents, {len(steps) + 1} with the first frame, expected a "
            f"multiple of {chunk_frames}, a chunk: add {-(len(steps) + 1) % chunk_frames} latents"
        )
    return steps


def sample(
    session: Session, config: ml_collections.ConfigDict, prompt: results.Prompt | None = None
) -> results.Comparison:
    """Generate the sample of `config.sample`: its script on a held-out map, or a held-out episode of user data.

    With `prompt`, caption and first image are those of the user, and there is no truth.
    """
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
    clip = held_out.with_prompt(clip, prompt, session.encoders)
    frames = roll_out(session, clip, clip.camera_controls, seed=settings.seed)
    return held_out.shown(compare(clip, frames, session.chunk_frames), prompt)
