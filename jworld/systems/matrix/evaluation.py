"""Evaluation of models that generate clips from captions: held-out clips are restored from almost pure noise.

A clip sampled from pure noise has no truth to be compared with. So noise is added to a recorded clip until almost
nothing of it is left, and sampling continues from there. PSNRs are in dB against the recorded frames at the model's
size, for equal parts of the clip. The baselines are the first frame repeated and, for a model with control, the model
with mirrored tokens. The PSNR of the autoencoder alone is the ceiling.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
import rich.console
import rich.progress

from jworld.cameras import driving
from jworld.evaluation import control, held_out, measures, results
from jworld.systems.matrix.session import ClipSession, Controls
from jworld.utils import indices

REPEATED = "first frame repeated"
#: Token of a clip without recorded actions.
STANDING = "N"
#: Share of the sampler's steps that are skipped; restoring starts after them.
NOISED_TO = 0.25
#: Clips on the contact sheet.
SHOWN = 4


def recorded_tokens(clip: held_out.Clip) -> tuple[str, ...]:
    """Return the driving tokens of a clip's latents: its own, or those of its action labels, or standing still."""
    if clip.tokens is not None:
        return tuple(driving.TOKENS[int(token)] for token in clip.tokens)
    if clip.controls is not None:
        return tuple(driving.from_labels(clip.controls.action))
    return (STANDING,) * clip.latents


def recorded_controls(clip: held_out.Clip, *, steered: bool) -> Controls | None:
    """Return the driving tokens of a recorded clip for a model with control, else None."""
    return Controls(recorded_tokens(clip)) if steered else None


def evaluate(
    session: ClipSession,
    config: ml_collections.ConfigDict,
    options: results.Options,
    console: rich.console.Console,
    *,
    steered: bool,
) -> results.Report:
    """Measure a model on held-out clips, each in `options.chunks` parts.

    Raises:
      UserError: the clips are absent or too short.
    """
    lengths, load = held_out.held_out(config, session.encoders)
    chosen = held_out.choose_windows(lengths, latents=session.latents, windows=options.windows)
    measure = control.open_measure(config, options, driving.of_label) if steered else None
    rows, shown = [], []
    shown_at = indices.evenly(len(chosen), SHOWN)
    for i, (index, first) in enumerate(rich.progress.track(chosen, "evaluating", console=console)):
        clip = held_out.window(load(index), start=first, latents=session.latents)
        videos = restored(session, clip, seed=options.seed + i, steered=steered)
        spans = parts(len(clip.frames), options.chunks)
        patch = session.encoders.autoencoder.spatial_ratio
        values = measures.measure(clip.frames, videos, spans, patch=patch)
        if measure is not None:
            measure.add(clip, videos, spans)
        rows.append({"clip": clip.name, "first_latent": first, **values})
        options.keep(rows[-1])
        if i in shown_at:
            title = f"{clip.name} from frame {held_out.STRIDE * first}, restored"
            shown.append(
                compare(
                    clip, videos[held_out.MODEL], values["psnr"][held_out.MODEL], spans, steered=steered, title=title
                )
            )
    return control.add_to(measures.report(rows, shown), measure)


def restored(session: ClipSession, clip: held_out.Clip, *, seed: int, steered: bool) -> dict[str, np.ndarray]:
    """Restore a clip with the model; return it and the baselines, frames uint8 [T, H, W, 3] by name."""
    start = round(NOISED_TO * session.sample.num_steps)
    controls = recorded_controls(clip, steered=steered)
    choices: dict[str, Controls | None] = {held_out.MODEL: controls}
    if controls is not None:
        choices[held_out.SWAPPED] = Controls(driving.mirrored(controls.tokens))
    videos = {}
    for name, choice in choices.items():
        session.reset(None, clip.prompt, seed=seed)
        videos[name] = session.restore(clip.frames, choice, start=start)
    videos[REPEATED] = np.broadcast_to(clip.frames[:1], clip.frames.shape)
    autoencoder = session.encoders.autoencoder
    videos[held_out.AUTOENCODER] = autoencoder.decode(autoencoder.encode(clip.frames[None]))[0]
    return videos


def parts(frames: int, count: int) -> list[tuple[int, int]]:
    """Return first frame and end of `count` nearly equal parts of a clip."""
    bounds = np.linspace(0, frames, count + 1).round().astype(int).tolist()
    return list(itertools.pairwise(bounds))


def compare(
    clip: held_out.Clip,
    frames: np.ndarray,
    psnr: Sequence[float | None],
    spans: list[tuple[int, int]],
    *,
    steered: bool,
    title: str,
) -> results.Comparison:
    """Return recorded and generated clip for a contact sheet, in parts that name their driving tokens."""
    tokens = recorded_tokens(clip)
    chunks = []
    for (start, stop), value in zip(spans, psnr, strict=True):
        # Latent i holds the frames 4i - 3 to 4i; the token of latent 0 describes no motion.
        part = tokens[max(-(-start // held_out.STRIDE), 1) : -(-(stop - 1) // held_out.STRIDE) + 1]
        chunks.append(
            results.Chunk(start=start, stop=stop, action=driving.named(part) if steered else "caption", psnr=value)
        )
    return results.Comparison(title=title, truth=clip.frames, prediction=frames, chunks=chunks)


def sample(
    session: ClipSession,
    config: ml_collections.ConfigDict,
    *,
    steered: bool,
    prompt: results.Prompt | None = None,
) -> results.Comparison:
    """Generate a clip from the caption, and the controls, of a recorded one.

    The recorded clip is `config.sample.actions` on a held-out map. For the user's own data it is the first held-out
    clip. With `prompt`, the caption is that of the user, and there is no truth.
    """
    settings: Any = config.sample
    recording = held_out.recording_config(config)
    if recording.source:
        script = driving.filled(driving.parse(settings.actions), session.latents - 1)
        names = [driving.action_name(token) for token in script]
        clip = held_out.scripted_clip(recording, session.encoders, names, seed=settings.seed)
    else:
        lengths, load = held_out.held_out(config, session.encoders)
        index, first = held_out.choose_windows(lengths, latents=session.latents, windows=1)[0]
        clip = held_out.window(load(index), start=first, latents=session.latents)
    clip = held_out.with_prompt(clip, prompt, session.encoders)
    session.reset(None, clip.prompt, seed=settings.seed)
    frames = session.step(recorded_controls(clip, steered=steered))
    spans = parts(len(frames), min(4, session.latents - 1))
    made = compare(clip, frames, [None] * len(spans), spans, steered=steered, title=clip.prompt)
    return held_out.shown(made, prompt)
