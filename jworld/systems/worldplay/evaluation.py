"""Evaluation of WorldPlay: rollouts along held-out episodes, compared with simple baselines, and revisited views.

PSNRs are in dB against the recorded frames at the model's size, averaged over episodes, without the given first frame.
The baselines are the first frame repeated, and the model with mirrored controls. The PSNR of the autoencoder alone is
the ceiling. A revisit turns right (for 11 latents if a chunk has 4), waits for one latent and turns back. It measures
how well the last latent shows the first view again, with and without memory retrieval.
"""

import collections
import functools
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np
import rich.console
import rich.progress

from jworld.cameras import actions
from jworld.data.recording import recorder
from jworld.evaluation import held_out, measures, results
from jworld.systems.worldplay import rollout
from jworld.systems.worldplay.session import Session
from jworld.utils import indices

#: Latents of a revisit, rounded up to whole chunks.
REVISIT_LATENTS = 24
#: Number of first chunks over which the gain over the repeated first frame is averaged.
GAIN_CHUNKS = 4
#: Rollouts on the contact sheet.
SHOWN = 4

REPEATED = "first frame repeated"
CURVES = (held_out.MODEL, REPEATED, held_out.SWAPPED, held_out.AUTOENCODER)


def evaluate(
    session: Session,
    latest_only: Session,
    config: ml_collections.ConfigDict,
    options: results.Options,
    console: rich.console.Console,
) -> results.Report:
    """Measure a model on the held-out episodes of its config; `latest_only` is its session without retrieval.

    Raises:
      UserError: the episodes are absent or shorter than `options.chunks`.
    """
    recording = held_out.recording_config(config)
    latents = options.chunks * session.chunk_frames
    lengths, load = held_out.held_out(config, session.encoders)
    # Records store the image states of their first frame only.
    starts_only = not recording.source and session.encoders.images is None
    chosen = held_out.choose_windows(lengths, latents=latents, windows=options.windows, starts_only=starts_only)
    revisits = results.REVISITS if options.revisits is None else options.revisits
    if not recording.source:
        revisits = 0
    rows, rollouts = [], []
    with rich.progress.Progress(console=console) as progress:
        task = progress.add_task("evaluating", total=2 * (len(chosen) + revisits))
        advance = functools.partial(progress.advance, task)
        for i, (index, start) in enumerate(chosen):
            clip = held_out.window(load(index), start=start, latents=latents)
            row, frames = measure(session, clip, seed=options.seed + i, advance=advance)
            rows.append({"clip": clip.name, "first_latent": start, **row})
            title = f"{clip.name} from frame {held_out.STRIDE * start}"
            rollouts.append(rollout.compare(clip, frames, session.chunk_frames, title=title))
        returns = measure_revisits(session, latest_only, recording, count=revisits, seed=options.seed, advance=advance)
    shown = [rollouts[i] for i in indices.evenly(len(rollouts), SHOWN)]
    return _report(rows, returns, shown)


def measure(
    session: Session, clip: held_out.Clip, *, seed: int, advance: Callable[[], None]
) -> tuple[dict[str, Any], np.ndarray]:
    """Measure one episode.

    Returns:
      The values of `measures.measure` per chunk, for the model and every baseline by name, and which chunks turn; and
      the model's frames.
    """
    recorded = clip.camera_controls
    frames = {}
    for name, controls in ((held_out.MODEL, recorded), (held_out.SWAPPED, rollout.swapped(recorded))):
        frames[name] = rollout.roll_out(session, clip, controls, seed=seed)
        advance()
    frames[REPEATED] = np.broadcast_to(clip.frames[:1], clip.frames.shape)
    autoencoder = session.encoders.autoencoder
    frames[held_out.AUTOENCODER] = autoencoder.decode(autoencoder.encode(clip.frames[None]))[0]
    size = session.chunk_frames
    spans = held_out.generated_frames(clip.latents, size)
    values = measures.measure(clip.frames, frames, spans, patch=autoencoder.spatial_ratio)
    row = {**values, "turning": turning_chunks(recorded.action, size)}
    return row, frames[held_out.MODEL]


def turning_chunks(labels: np.ndarray, size: int) -> list[bool]:
    """Return for every chunk of `size` labels whether the camera turns left or right in at least half of them."""
    turns = np.array([any(actions.label_to_flags(int(label))[1][:2]) for label in labels])
    return [bool(chunk.mean() >= 0.5) for chunk in turns.reshape(-1, size)]


def measure_revisits(
    session: Session,
    latest_only: Session,
    recording: recorder.RecordingConfig,
    *,
    count: int,
    seed: int,
    advance: Callable[[], None],
) -> dict[str, list[float]]:
    """Measure the PSNR (dB) of the last latent's frames of `count` revisits, with and without retrieval."""
    values = collections.defaultdict(list)
    script = revisit_script(session.chunk_frames)
    for i in range(count):
        clip = held_out.scripted_clip(recording, session.encoders, script, seed=i)
        for name, used in (("with retrieval", session), ("without", latest_only)):
            frames = rollout.roll_out(used, clip, clip.camera_controls, seed=seed + i)
            values[name].append(held_out.psnr(clip.frames[-held_out.STRIDE :], frames[-held_out.STRIDE :]))
            advance()
    return dict(values)


def revisit_script(chunk_frames: int) -> list[str]:
    """Return the actions of all latents but the first: turn right, wait, turn back."""
    latents = -(-REVISIT_LATENTS // chunk_frames) * chunk_frames
    turns = latents // 2 - 1
    return [*["yaw_right"] * turns, *["none"] * (latents - 1 - 2 * turns), *["yaw_left"] * turns]


def _report(
    rows: list[dict[str, Any]], returns: dict[str, list[float]], shown: list[results.Comparison]
) -> results.Report:
    psnr = {name: np.array([row["psnr"][name] for row in rows]) for name in CURVES}
    turning = np.array([row["turning"] for row in rows])
    gain = float((psnr[held_out.MODEL] - psnr[REPEATED])[:, :GAIN_CHUNKS].mean())
    gaps = (psnr[held_out.MODEL] - psnr[held_out.SWAPPED])[turning]
    swap_gap = float(gaps.mean()) if gaps.size else None
    curves = {name: values.mean(axis=0).tolist() for name, values in psnr.items()}
    bars = {name: float(np.mean(values)) for name, values in returns.items()}
    chunks = min(GAIN_CHUNKS, len(curves[held_out.MODEL]))
    swap_text = "no chunk turns" if swap_gap is None else f"{swap_gap:+.2f} dB"
    summary = [
        (f"gain over the repeated first frame, first {chunks} chunks", f"{gain:+.2f} dB"),
        (f"gain over swapped controls, {gaps.size} turning chunks", swap_text),
    ]
    for name, value in bars.items():
        summary.append((f"view after turning away and back, {name}", f"{value:.2f} dB"))
    images = measures.image_curves(rows)
    summary += measures.summary(images)
    numbers = {
        "windows": len(rows),
        "psnr_per_chunk": curves,
        "images_per_chunk": images,
        "gain_over_repeated_first_frame": gain,
        "gain_over_swapped_on_turning_chunks": swap_gap,
        "turning_chunks": int(gaps.size),
        "revisit_psnr": bars,
        "per_window": rows,
        "per_revisit": returns,
    }
    return results.Report(
        numbers=numbers,
        curves=curves,
        images=images,
        bars=bars,
        bars_title="Turned away and back",
        summary=summary,
        rollouts=shown,
    )
