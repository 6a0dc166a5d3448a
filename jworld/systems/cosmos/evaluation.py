"""How close continuations of held-out clips come to what was recorded, beside simple baselines.

PSNRs are in dB against the recorded frames at the model's size, per window; given frames are not counted. The baselines
are the last given frame repeated, and, for an action model, the same model told the mirror image of the walk. The
codec's own PSNR is the ceiling.
"""

from typing import Any

import ml_collections
import numpy as np
import rich.console
import rich.progress

from jworld.cameras import actions, robots
from jworld.evaluation import held_out, results
from jworld.systems.cosmos.session import Session
from jworld.utils import errors, indices

REPEATED = "given frame repeated"
#: Continuations that the contact sheet shows.
SHOWN = 4


def made_spans(session: Session, windows: int) -> list[tuple[int, int]]:
    """First frame and end of what every window makes; each continues the last frames of the one before."""
    length = 1 + session.encoders.autoencoder.temporal_ratio * (session.clip.window_frames - 1)
    new = length - session.given_pixels
    return [(length + (i - 1) * new, length + i * new) for i in range(windows)]


def total_latents(session: Session, windows: int) -> int:
    """Latents of a recorded walk that `windows` windows need."""
    end = made_spans(session, windows)[-1][1]
    return 1 + -(-(end - 1) // session.encoders.autoencoder.temporal_ratio)


def told(session: Session, w2c: np.ndarray, windows: int) -> list[np.ndarray | None]:
    """What the session is told of a walk's cameras [F, 4, 4], window by window."""
    if session.clip.actions != "poses":
        return [None] * windows
    motion = robots.camera_actions(w2c)
    size = session.clip.window_frames - 1
    return [motion[i * size : (i + 1) * size] for i in range(windows)]


def roll_out(session: Session, clip: held_out.Clip, steps: list[np.ndarray | None], *, seed: int) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] from the clip's first ones."""
    session.reset(clip.frames[: session.given_pixels], clip.prompt, seed=seed)
    return np.concatenate([session.step(step) for step in steps])


def evaluate(
    session: Session, config: ml_collections.ConfigDict, options: results.Options, console: rich.console.Console
) -> results.Report:
    """Measure a model on held-out clips, `options.chunks` windows each.

    Raises:
      UserError: the clips are absent or shorter than that.
    """
    if session.clip.actions == "motion":
        raise errors.UserError(
            "the model is steered by recorded motion that held-out walks do not have: python -m jworld.generate shows "
            "what it makes of a JSON file of actions"
        )
    lengths, load = held_out.held_out(config, session.encoders)
    latents = total_latents(session, options.chunks)
    chosen = held_out.choose_windows(lengths, latents=latents, windows=options.windows)
    rows, shown = [], []
    shown_at = indices.evenly(len(chosen), SHOWN)
    for i, (index, start) in enumerate(rich.progress.track(chosen, "evaluating", console=console)):
        clip = held_out.window(load(index), start=start, latents=latents)
        values, frames = measure(session, clip, windows=options.chunks, seed=options.seed + i)
        rows.append({"clip": clip.name, "first_latent": start, "psnr": values})
        if i in shown_at:
            title = f"{clip.name} from frame {held_out.STRIDE * start}"
            shown.append(compare(session, clip, frames, windows=options.chunks, title=title))
    return held_out.report(rows, shown)


def measure(
    session: Session, clip: held_out.Clip, *, windows: int, seed: int
) -> tuple[dict[str, list[float]], np.ndarray]:
    """PSNR per window of one clip, for the model and for what it is compared with; and the model's frames."""
    made = {held_out.MODEL: roll_out(session, clip, told(session, clip.controls.w2c, windows), seed=seed)}
    length = len(made[held_out.MODEL])
    if session.clip.actions:
        _, mirrored = actions.swap_left_right(clip.controls.action, clip.controls.w2c)
        made[held_out.SWAPPED] = roll_out(session, clip, told(session, mirrored, windows), seed=seed)
    given = session.given_pixels
    made[REPEATED] = np.broadcast_to(clip.frames[given - 1], (length, *clip.frames.shape[1:]))
    codec = session.encoders.autoencoder
    made[held_out.CODEC] = codec.decode(codec.encode(clip.frames[None]))[0][:length]
    spans = made_spans(session, windows)
    values = {name: [held_out.psnr(clip.frames[a:b], video[a:b]) for a, b in spans] for name, video in made.items()}
    return values, made[held_out.MODEL]


def compare(
    session: Session, clip: held_out.Clip, frames: np.ndarray, *, windows: int, title: str
) -> results.Comparison:
    """Truth and continuation, ready to be drawn."""
    chunks = [
        results.Chunk(
            # The given frames are shown with the first window that continues them.
            start=start if i else 0,
            stop=stop,
            action="made" if i else "given, then made",
            psnr=held_out.psnr(clip.frames[start:stop], frames[start:stop]),
        )
        for i, (start, stop) in enumerate(made_spans(session, windows))
    ]
    return results.Comparison(title=title, truth=clip.frames[: len(frames)], prediction=frames, chunks=chunks)


def sample(session: Session, config: ml_collections.ConfigDict) -> results.Comparison:
    """Continue the first held-out clip for `config.sample.windows` windows, or as far as it is recorded."""
    settings: Any = config.sample
    lengths, load = held_out.held_out(config, session.encoders)
    possible = [n for n in range(1, settings.windows + 1) if total_latents(session, n) <= max(lengths)]
    if not possible:
        raise errors.UserError(
            f"the longest held-out clip has {max(lengths)} latents, expected {session.clip.window_frames}, those of a "
            "window: make longer records"
        )
    latents = total_latents(session, possible[-1])
    index, start = held_out.choose_windows(lengths, latents=latents, windows=1)[0]
    clip = held_out.window(load(index), start=start, latents=latents)
    frames = roll_out(session, clip, told(session, clip.controls.w2c, possible[-1]), seed=settings.seed)
    return compare(session, clip, frames, windows=possible[-1], title="")
