"""Evaluation of streams on held-out episodes (stages 3 and 4), and the distance of a student from its teacher.

A stream starts from a recorded clip, with the noise of the first window, and is conditioned on the episode's driving
tokens. The frames of window k start with more noise the larger k is; after the last noise group they start as pure
noise. PSNRs are in dB against the recorded frames at the model's size, per window. The baselines are the last given
frame repeated, and the model with mirrored tokens. The PSNR of the autoencoder alone is the ceiling.
"""

import dataclasses
import itertools
import types
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections
import numpy as np
import rich.console
import rich.progress

from jworld.cameras import driving
from jworld.evaluation import control, held_out, measures, results
from jworld.systems.matrix.evaluation import recorded_tokens
from jworld.systems.matrix.session import Controls
from jworld.systems.matrix.streaming import StreamSession
from jworld.utils import indices

REPEATED = "given frame repeated"
#: Streams on the contact sheet.
SHOWN = 4
TO_TEACHER = "PSNR to the teacher in many steps"


@dataclasses.dataclass(frozen=True)
class Distance:
    """Distance between a stream and the stream of the teacher in many steps, with the same noise.

    Attributes:
      psnr: PSNR per window, in dB.
      latents: error in latent space per window, divided by the norm of the teacher's latents.
    """

    psnr: list[float]
    latents: list[float]


def total_latents(session: StreamSession, windows: int) -> int:
    """Return the number of latents of a recorded episode that `windows` windows are compared with."""
    ratio = session.encoders.autoencoder.temporal_ratio
    start = 1 + (session.start_frames - 1) // ratio
    return max(start, session.first_latent + session.sample.window_frames * windows)


def spans(session: StreamSession, windows: int) -> list[tuple[int, int]]:
    """Return first frame and end, in the recorded clip, of the frames that every window emits."""
    ratio, size = session.encoders.autoencoder.temporal_ratio, session.sample.window_frames
    first = ratio * (session.first_latent - 1) + 1
    return [(first + ratio * size * i, first + ratio * size * (i + 1)) for i in range(windows)]


def steps(session: StreamSession, tokens: Sequence[str], windows: int) -> list[Controls]:
    """Return the session's action for every window, from the tokens of a clip's latents."""
    size, frames = session.sample.window_frames, session.window_frames
    filled = driving.filled(tokens[session.first_latent - 1 :], size * windows + frames)
    return [Controls(filled[size * i : size * i + frames]) for i in range(windows)]


def roll_out(session: StreamSession, clip: held_out.Clip, actions: list[Controls], *, seed: int) -> np.ndarray:
    """Generate the frames of all windows, uint8 [T, H, W, 3], from the clip's first frames."""
    session.reset(clip.frames[: session.start_frames], clip.prompt, seed=seed)
    return np.concatenate([session.step(controls) for controls in actions])


def evaluate(
    session: StreamSession,
    config: ml_collections.ConfigDict,
    options: results.Options,
    console: rich.console.Console,
    *,
    teacher: StreamSession | None = None,
    students: Mapping[str, StreamSession] = types.MappingProxyType({}),
) -> results.Report:
    """Measure a model on held-out episodes, `options.chunks` windows each.

    Args:
      session: session of the model.
      config: config of its run.
      options: amount of data.
      console: console for the progress bar.
      teacher: session of a student's teacher in many steps.
      students: sessions to compare with the teacher, by name.

    Raises:
      UserError: the episodes are absent or too short.
    """
    windows = options.chunks
    lengths, load = held_out.held_out(config, session.encoders)
    latents = total_latents(session, windows)
    chosen = held_out.choose_windows(lengths, latents=latents, windows=options.windows)
    shown_at = indices.evenly(len(chosen), SHOWN)
    measure = control.open_measure(config, options, driving.of_label) if session.is_steered else None
    rows, shown = [], []
    for i, (index, start) in enumerate(rich.progress.track(chosen, "evaluating", console=console)):
        clip = held_out.window(load(index), start=start, latents=latents)
        videos = generated(session, clip, windows, seed=options.seed + i)
        patch = session.encoders.autoencoder.spatial_ratio
        values = measures.measure(clip.frames, videos, spans(session, windows), patch=patch)
        if measure is not None:
            measure.add(clip, videos, spans(session, windows))
        row: dict[str, Any] = {"clip": clip.name, "first_latent": start, **values}
        if teacher is not None:
            found = distances(teacher, students, clip, windows, seed=options.seed + i)
            row["to_teacher"] = {name: dataclasses.asdict(distance) for name, distance in found.items()}
        rows.append(row)
        options.keep(rows[-1])
        if i in shown_at:
            title = f"{clip.name} from frame {held_out.STRIDE * start}"
            shown.append(compare(session, clip, videos[held_out.MODEL], windows, title=title))
    return control.add_to(_report(rows, shown), measure)


def generated(session: StreamSession, clip: held_out.Clip, windows: int, *, seed: int) -> dict[str, np.ndarray]:
    """Return the model's video of an episode and the baselines by name, each after the clip's first frames."""
    tokens = recorded_tokens(clip)
    first, stop = spans(session, windows)[0][0], spans(session, windows)[-1][1]
    autoencoder = session.encoders.autoencoder

    def whole(emitted: np.ndarray) -> np.ndarray:
        return np.concatenate([clip.frames[:first], emitted])

    choices = {held_out.MODEL: tokens}
    if session.is_steered:
        choices[held_out.SWAPPED] = driving.mirrored(tokens)
    videos = {
        name: whole(roll_out(session, clip, steps(session, choice, windows), seed=seed))
        for name, choice in choices.items()
    }
    videos[REPEATED] = whole(np.broadcast_to(clip.frames[first - 1], (stop - first, *clip.frames.shape[1:])))
    videos[held_out.AUTOENCODER] = autoencoder.decode(autoencoder.encode(clip.frames[None]))[0]
    return videos


def distances(
    teacher: StreamSession, students: Mapping[str, StreamSession], clip: held_out.Clip, windows: int, *, seed: int
) -> dict[str, Distance]:
    """Measure the distance of each of `students` from the teacher; all start from the same clip and noise."""
    actions = steps(teacher, recorded_tokens(clip), windows)

    def roll(session: StreamSession) -> tuple[np.ndarray, list[np.ndarray]]:
        session.reset(clip.frames[: session.start_frames], clip.prompt, seed=seed)
        latents = [session.advance(controls) for controls in actions]
        return np.concatenate(list(session.decode(np.concatenate(latents)))), latents

    truth, expected = roll(teacher)
    parts = np.arange(windows + 1) * len(truth) // windows
    found = {}
    for name, session in students.items():
        frames, latents = roll(session)
        psnr = [held_out.psnr(truth[a:b], frames[a:b]) for a, b in itertools.pairwise(parts)]
        errors = [
            float(np.linalg.norm(actual - target) / np.linalg.norm(target))
            for actual, target in zip(latents, expected, strict=True)
        ]
        found[name] = Distance(psnr, errors)
    return found


def compare(
    session: StreamSession, clip: held_out.Clip, frames: np.ndarray, windows: int, *, title: str
) -> results.Comparison:
    """Return recorded and generated frames of all windows for a contact sheet, with the tokens of each window."""
    actions = steps(session, recorded_tokens(clip), windows)
    bounds = spans(session, windows)
    first = bounds[0][0]
    chunks = [
        results.Chunk(
            start=a - first,
            stop=b - first,
            action=driving.named(controls.tokens[1 : 1 + session.sample.window_frames]),
            psnr=held_out.psnr(clip.frames[a:b], frames[a:b]),
        )
        for (a, b), controls in zip(bounds, actions, strict=True)
    ]
    part = slice(first, bounds[-1][1])
    return results.Comparison(title=title, truth=clip.frames[part], prediction=frames[part], chunks=chunks)


def sample(
    session: StreamSession, config: ml_collections.ConfigDict, prompt: results.Prompt | None = None
) -> results.Comparison:
    """Generate a stream along `config.sample.actions` on a held-out map, or along a held-out episode of user data.

    With `prompt`, caption and first image are those of the user, and there is no truth.
    """
    settings: Any = config.sample
    recording = held_out.recording_config(config)
    script = driving.parse(settings.actions)
    if recording.source:
        names = [driving.action_name(token) for token in script]
        clip = held_out.scripted_clip(recording, session.encoders, names, seed=settings.seed)
    else:
        lengths, load = held_out.held_out(config, session.encoders)
        latents = min(max(lengths), 1 + len(script))
        index, start = held_out.choose_windows(lengths, latents=latents, windows=1)[0]
        clip = held_out.window(load(index), start=start, latents=latents)
    windows = (clip.latents - session.first_latent) // session.sample.window_frames
    if clip.latents < total_latents(session, max(windows, 1)):
        raise ValueError(f"a clip of {clip.latents} latents is shorter than the first window")
    clip = held_out.with_prompt(clip, prompt, session.encoders)
    tokens = recorded_tokens(clip)
    emitted = roll_out(session, clip, steps(session, tokens, windows), seed=settings.seed)
    frames = np.concatenate([clip.frames[: spans(session, 1)[0][0]], emitted])
    return held_out.shown(compare(session, clip, frames, windows, title=""), prompt)


def _report(rows: list[dict[str, Any]], shown: list[results.Comparison]) -> results.Report:
    report = measures.report(rows, shown)
    numbers, summary, bars = report.numbers, report.summary, report.bars
    for name in rows[0].get("to_teacher", ()):
        found = [row["to_teacher"][name] for row in rows]
        bars[name] = float(np.mean([distance["psnr"] for distance in found]))
        error = float(np.mean([distance["latents"] for distance in found]))
        numbers[f"to_teacher, {name}"] = {"psnr": bars[name], "latents": error}
        summary.append((f"to the teacher in many steps, {name}", f"{bars[name]:.2f} dB, latents {error:.1%} off"))
    return dataclasses.replace(report, bars_title=TO_TEACHER)
