"""Measurements of WorldPlay on scripted paths through held-out maps: views that come back, and standing still.

A revisit turns right by some degrees, waits and turns back; one of 360 degrees turns right all the way round. It
measures how well the last latent shows the first view again, with and without memory retrieval.
"""

from collections.abc import Callable, Sequence
from typing import TypedDict, Unpack

from jworld.data.recording import explorer, recorder
from jworld.evaluation import held_out
from jworld.systems.worldplay import rollout
from jworld.systems.worldplay.session import Session

#: Degrees of a turn per latent.
TURN = explorer.TURN * explorer.BLOCK
CIRCLE = 360
#: Chunks of standing still.
STILL_CHUNKS = 8
RETRIEVAL, WITHOUT = "with retrieval", "without"


class Options(TypedDict):
    """Options of all measurements: number of paths, random seed for the noise, and what to call after each rollout."""

    count: int
    seed: int
    advance: Callable[[], None]


def revisits(
    session: Session,
    latest_only: Session,
    recording: recorder.RecordingConfig,
    angles: Sequence[int],
    **options: Unpack[Options],
) -> dict[str, dict[str, list[float]]]:
    """Return the PSNR (dB) of the last latent's frames of revisits: degrees -> with or without retrieval."""
    sessions = {RETRIEVAL: session, WITHOUT: latest_only}
    found: dict[str, dict[str, list[float]]] = {}
    for angle in angles:
        values: dict[str, list[float]] = {name: [] for name in sessions}
        for i in range(options["count"]):
            clip = held_out.scripted_clip(
                recording, session.encoders, revisit_script(angle, session.chunk_frames), seed=i
            )
            for name, used in sessions.items():
                frames = rollout.roll_out(used, clip, clip.camera_controls, seed=options["seed"] + i)
                values[name].append(held_out.psnr(clip.frames[-held_out.STRIDE :], frames[-held_out.STRIDE :]))
                options["advance"]()
        found[str(angle)] = values
    return found


def revisit_script(angle: int, chunk_frames: int) -> list[str]:
    """Return the actions of all latents but the first, in whole chunks: turn right, wait, turn back.

    A turn of `CIRCLE` degrees ends where it began. At least one latent waits between two turns.
    """
    turns = max(round(angle / TURN), 1)
    back = 0 if angle == CIRCLE else turns
    waiting = -(1 + turns + back) % chunk_frames or (chunk_frames if back else 0)
    return ["yaw_right"] * turns + ["none"] * waiting + ["yaw_left"] * back


def standing_still(
    session: Session, recording: recorder.RecordingConfig, **options: Unpack[Options]
) -> list[list[float]]:
    """Return the PSNR (dB) of every chunk of rollouts that stand still for `STILL_CHUNKS` chunks."""
    script = ["none"] * (STILL_CHUNKS * session.chunk_frames - 1)
    values = []
    for i in range(options["count"]):
        clip = held_out.scripted_clip(recording, session.encoders, script, seed=i)
        frames = rollout.roll_out(session, clip, clip.camera_controls, seed=options["seed"] + i)
        values.append(held_out.chunk_psnr(clip.frames, frames, session.chunk_frames))
        options["advance"]()
    return values
