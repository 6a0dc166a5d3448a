"""How well a model that makes clips of captions knows held-out ones: clips restored from almost pure noise.

A clip made of noise alone has nothing to be compared with. So a recorded clip is noised until next to nothing is left
of it, and sampling goes on from there. PSNRs are in dB against the recorded frames at the model's size, for equal parts
of the clip. The baselines are the first frame repeated, and, for a model with control, the same model told the mirror
image of the walk. The codec's own PSNR is the ceiling.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import ml_collections
import numpy as np
import rich.console
import rich.progress

from jworld.cameras import driving
from jworld.evaluation import held_out, results
from jworld.systems.matrix.session import ClipSession, Controls
from jworld.utils import indices

REPEATED = "first frame repeated"
#: Share of the sampler's steps that are left out: restoring begins behind them.
NOISED_TO = 0.25
#: Clips that the contact sheet shows.
SHOWN = 4


def told(clip: held_out.Clip, *, steered: bool) -> Controls | None:
    """A recorded clip's driving tokens, for a model with control."""
    return Controls(driving.from_labels(clip.controls.action)) if steered else None


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
    rows, shown = [], []
    shown_at = indices.evenly(len(chosen), SHOWN)
    for i, (index, first) in enumerate(rich.progress.track(chosen, "evaluating", console=console)):
        clip = held_out.window(load(index), start=first, latents=session.latents)
        made = measure(session, clip, seed=options.seed + i, steered=steered)
        spans = parts(len(clip.frames), options.chunks)
        values = {name: [held_out.psnr(clip.frames[a:b], video[a:b]) for a, b in spans] for name, video in made.items()}
        rows.append({"clip": clip.name, "first_latent": first, "psnr": values})
        if i in shown_at:
            title = f"{clip.name} from frame {held_out.STRIDE * first}, restored"
            shown.append(
                compare(clip, made[held_out.MODEL], values[held_out.MODEL], spans, steered=steered, title=title)
            )
    return held_out.report(rows, shown)


def measure(session: ClipSession, clip: held_out.Clip, *, seed: int, steered: bool) -> dict[str, np.ndarray]:
    """A clip as the model restores it, and what that is compared with: frames uint8 [T, H, W, 3] by name."""
    start = round(NOISED_TO * session.sample.num_steps)
    controls = told(clip, steered=steered)
    choices: dict[str, Controls | None] = {held_out.MODEL: controls}
    if controls is not None:
        choices[held_out.SWAPPED] = Controls(driving.mirrored(controls.tokens))
    made = {}
    for name, choice in choices.items():
        session.reset(None, clip.prompt, seed=seed)
        made[name] = session.restore(clip.frames, choice, start=start)
    made[REPEATED] = np.broadcast_to(clip.frames[:1], clip.frames.shape)
    codec = session.encoders.autoencoder
    made[held_out.AUTOENCODER] = codec.decode(codec.encode(clip.frames[None]))[0]
    return made


def parts(frames: int, count: int) -> list[tuple[int, int]]:
    """First frame and end of `count` parts of a clip that are as equal as can be."""
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
    """Recorded and made clip in parts, ready to be drawn, each with what was told in it."""
    tokens = driving.from_labels(clip.controls.action)
    chunks = []
    for (start, stop), value in zip(spans, psnr, strict=True):
        # Latent i holds the frames 4i - 3 to 4i; that of latent 0 says nothing of a motion.
        heard = tokens[max(-(-start // held_out.STRIDE), 1) : -(-(stop - 1) // held_out.STRIDE) + 1]
        chunks.append(
            results.Chunk(start=start, stop=stop, action=driving.named(heard) if steered else "caption", psnr=value)
        )
    return results.Comparison(title=title, truth=clip.frames, prediction=frames, chunks=chunks)


def sample(session: ClipSession, config: ml_collections.ConfigDict, *, steered: bool) -> results.Comparison:
    """A clip made of the caption, and the controls, of a recorded one.

    That is `config.sample.actions` on a held-out map, or, on data of the user's own, the first held-out clip.
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
    session.reset(None, clip.prompt, seed=settings.seed)
    frames = session.step(told(clip, steered=steered))
    spans = parts(len(frames), min(4, session.latents - 1))
    return compare(clip, frames, [None] * len(spans), spans, steered=steered, title=clip.prompt)
