"""Evaluation of continuations of held-out clips, compared with the recording and with simple baselines.

PSNRs are in dB against the recorded frames at the model's size, per window, without the conditioning frames. The
baselines are the last conditioning frame repeated and, for an action model, the model conditioned on mirrored motion.
The PSNR of the autoencoder alone is the ceiling. With several cameras all pixels count, and each one by itself.
"""

import dataclasses
import itertools
from typing import Any

import ml_collections
import numpy as np
import rich.console
import rich.progress

from jworld.cameras import actions, robots
from jworld.data import camera_grids
from jworld.evaluation import control, held_out, measures, results
from jworld.systems.cosmos.session import Session
from jworld.utils import errors, indices

REPEATED = "given frame repeated"
#: Continuations on the contact sheet.
SHOWN = 4


def generated_spans(session: Session, windows: int) -> list[tuple[int, int]]:
    """Return first frame and end of the new frames of every window, which continues the previous window's last ones."""
    length = 1 + session.encoders.autoencoder.temporal_ratio * (session.clip.window_frames - 1)
    new = length - session.given_pixels
    return [(length + (i - 1) * new, length + i * new) for i in range(windows)]


def total_latents(session: Session, windows: int) -> int:
    """Return the number of latents of a recorded episode that `windows` windows need."""
    end = generated_spans(session, windows)[-1][1]
    return 1 + -(-(end - 1) // session.encoders.autoencoder.temporal_ratio)


def motion_per_window(session: Session, clip: held_out.Clip, windows: int) -> list[np.ndarray | None]:
    """Return the session's action of every window: camera motion or recorded motion of the clip, or None."""
    size = session.clip.window_frames - 1
    if session.clip.actions == "poses":
        motion = robots.camera_actions(clip.camera_controls.w2c)
    elif session.clip.actions in ("motion", "commands"):
        if clip.motion is None:
            raise errors.UserError(
                f"the held-out clip {clip.name} has no recorded motion, which steers the model: evaluate on records "
                "that have it"
            )
        motion, size = clip.motion.astype(np.float32), held_out.STRIDE * size
    else:
        return [None] * windows
    return [motion[i * size : (i + 1) * size] for i in range(windows)]


def roll_out(session: Session, clip: held_out.Clip, steps: list[np.ndarray | None], *, seed: int) -> np.ndarray:
    """Generate frames uint8 [T, H, W, 3] that continue the clip's first ones."""
    session.reset(clip.frames[: session.given_pixels], clip.prompt, seed=seed)
    return np.concatenate([session.step(step) for step in steps])


def evaluate(
    session: Session, config: ml_collections.ConfigDict, options: results.Options, console: rich.console.Console
) -> results.Report:
    """Measure a model on held-out clips, `options.chunks` windows each.

    Raises:
      UserError: the clips are absent or too short.
    """
    lengths, load = held_out.held_out(config, session.encoders)
    latents = total_latents(session, options.chunks)
    chosen = held_out.choose_windows(lengths, latents=latents, windows=options.windows)
    control_measure = control.open_measure(config, options) if session.clip.actions == "poses" else None
    rows, shown = [], []
    shown_at = indices.evenly(len(chosen), SHOWN)
    for i, (index, start) in enumerate(rich.progress.track(chosen, "evaluating", console=console)):
        clip = held_out.window(load(index), start=start, latents=latents)
        videos = generated(session, clip, windows=options.chunks, seed=options.seed + i)
        spans = generated_spans(session, options.chunks)
        values = measure(session, clip.frames, videos, spans)
        if control_measure is not None:
            control_measure.add(clip, videos, spans)
        frames = videos[held_out.MODEL]
        rows.append({"clip": clip.name, "first_latent": start, **values})
        options.keep(rows[-1])
        if i in shown_at:
            title = f"{clip.name} from frame {held_out.STRIDE * start}"
            shown.append(compare(session, clip, frames, windows=options.chunks, title=title))
    report = measures.report(rows, shown)
    for name in session.clip.views:
        of_view = np.mean([row["views"][name] for row in rows], axis=0).tolist()
        report.numbers.setdefault("psnr_per_view", {})[name] = of_view
        report.summary.append((f"PSNR of {name}", f"{np.mean(of_view):.2f} dB"))
    return control.add_to(report, control_measure)


def measure(
    session: Session, truth: np.ndarray, videos: dict[str, np.ndarray], spans: list[tuple[int, int]]
) -> dict[str, Any]:
    """Return `measures.measure`, and under "views" the model's PSNR of every window by camera, if there are several."""
    patch, cameras = session.encoders.autoencoder.spatial_ratio, session.clip.cameras
    if cameras == 1:
        return measures.measure(truth, videos, spans, patch=patch)
    stacked = {name: camera_grids.stack(video, cameras) for name, video in videos.items()}
    both = (
        camera_grids.split(video, cameras) for video in (truth[: len(videos[held_out.MODEL])], videos[held_out.MODEL])
    )
    views = {
        name: [held_out.psnr(one[start:stop], other[start:stop]) for start, stop in spans]
        for name, one, other in zip(session.clip.views, *both, strict=True)
    }
    return measures.measure(camera_grids.stack(truth, cameras), stacked, spans, patch=patch) | {"views": views}


def generated(session: Session, clip: held_out.Clip, *, windows: int, seed: int) -> dict[str, np.ndarray]:
    """Return the model's continuation of a clip and the baselines by name, frames uint8 [T, H, W, 3]."""
    motion = motion_per_window(session, clip, windows)
    videos = {held_out.MODEL: roll_out(session, clip, motion, seed=seed)}
    length = len(videos[held_out.MODEL])
    if session.clip.actions == "poses":
        recorded = clip.camera_controls
        action, w2c = actions.swap_left_right(recorded.action, recorded.w2c)
        mirrored = dataclasses.replace(clip, controls=recorded._replace(action=action, w2c=w2c))
        motion = motion_per_window(session, mirrored, windows)
        videos[held_out.SWAPPED] = roll_out(session, clip, motion, seed=seed)
    given = session.given_pixels
    videos[REPEATED] = np.broadcast_to(clip.frames[given - 1], (length, *clip.frames.shape[1:]))
    videos[held_out.AUTOENCODER] = session.reconstruct(clip.frames)[:length]
    return videos


def compare(
    session: Session, clip: held_out.Clip, frames: np.ndarray, *, windows: int, title: str
) -> results.Comparison:
    """Return truth and continuation for a contact sheet."""
    chunks = [
        results.Chunk(
            # The conditioning frames are shown with the first window.
            start=start if i else 0,
            stop=stop,
            action="generated" if i else "given, then generated",
            psnr=held_out.psnr(clip.frames[start:stop], frames[start:stop]),
        )
        for i, (start, stop) in enumerate(generated_spans(session, windows))
    ]
    return results.Comparison(title=title, truth=clip.frames[: len(frames)], prediction=frames, chunks=chunks)


def sample(
    session: Session, config: ml_collections.ConfigDict, prompt: results.Prompt | None = None
) -> results.Comparison:
    """Continue the first held-out clip for `config.sample.windows` windows, or for fewer if it is shorter.

    With `prompt`, caption and image are those of the user, and there is no truth.

    Raises:
      UserError: the clips are absent or too short.
    """
    if session.clip.views and prompt is not None and prompt.image is not None:
        raise errors.UserError("config.sample.images: the model has several cameras: leave the key out")
    settings: Any = config.sample
    lengths, load = held_out.held_out(config, session.encoders)
    counts = range(1, settings.windows + 1)
    possible = list(itertools.takewhile(lambda count: total_latents(session, count) <= max(lengths), counts))
    if not possible:
        raise errors.UserError(
            f"the longest held-out clip has {max(lengths)} latents, expected at least {session.clip.window_frames} "
            "for a window: make longer records"
        )
    latents = total_latents(session, possible[-1])
    index, start = held_out.choose_windows(lengths, latents=latents, windows=1)[0]
    clip = held_out.window(load(index), start=start, latents=latents)
    clip = held_out.with_prompt(clip, prompt, session.encoders)
    motion = motion_per_window(session, clip, possible[-1])
    frames = roll_out(session, clip, motion, seed=settings.seed)
    return held_out.shown(compare(session, clip, frames, windows=possible[-1], title=""), prompt)
