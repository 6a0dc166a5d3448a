"""Evaluation of WorldPlay: rollouts along held-out episodes, compared with simple baselines, and revisited views.

PSNRs are in dB against the recorded frames at the model's size, averaged over episodes, without the given first frame.
The baselines are the first frame repeated, and the model with mirrored controls. The PSNR of the autoencoder alone is
the ceiling. `scripted` measures views that come back, and standing still.
"""

import functools
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np
import rich.console
import rich.progress

from jworld.cameras import actions
from jworld.evaluation import control, held_out, measures, results
from jworld.systems.worldplay import rollout, scripted
from jworld.systems.worldplay.session import Session
from jworld.utils import indices

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
    control_measure = control.open_measure(config, options)
    rows, rollouts = [], []
    with rich.progress.Progress(console=console) as progress:
        angles = options.angles or results.ANGLES
        total = 2 * len(chosen) + revisits * (2 * len(angles) + 1)
        task = progress.add_task("evaluating", total=total)
        advance = functools.partial(progress.advance, task)
        for i, (index, start) in enumerate(chosen):
            clip = held_out.window(load(index), start=start, latents=latents)
            videos = generated(session, clip, seed=options.seed + i, advance=advance)
            spans = held_out.generated_frames(clip.latents, session.chunk_frames)
            values = measures.measure(clip.frames, videos, spans, patch=session.encoders.autoencoder.spatial_ratio)
            if control_measure is not None:
                control_measure.add(clip, videos, spans)
            turning = turning_chunks(clip.camera_controls.action, session.chunk_frames)
            rows.append({"clip": clip.name, "first_latent": start, **values, "turning": turning})
            options.keep(rows[-1])
            title = f"{clip.name} from frame {held_out.STRIDE * start}"
            rollouts.append(rollout.compare(clip, videos[held_out.MODEL], session.chunk_frames, title=title))
        made: scripted.Options = {"count": revisits, "seed": options.seed, "advance": advance}
        returns = scripted.revisits(session, latest_only, recording, angles, **made)
        still = scripted.standing_still(session, recording, **made)
    shown = [rollouts[i] for i in indices.evenly(len(rollouts), SHOWN)]
    return control.add_to(_report(rows, returns, still, shown), control_measure)


def generated(
    session: Session, clip: held_out.Clip, *, seed: int, advance: Callable[[], None]
) -> dict[str, np.ndarray]:
    """Return the model's rollout along an episode and the baselines by name, frames uint8 [T, H, W, 3]."""
    recorded = clip.camera_controls
    frames = {}
    for name, controls in ((held_out.MODEL, recorded), (held_out.SWAPPED, rollout.swapped(recorded))):
        frames[name] = rollout.roll_out(session, clip, controls, seed=seed)
        advance()
    frames[REPEATED] = np.broadcast_to(clip.frames[:1], clip.frames.shape)
    autoencoder = session.encoders.autoencoder
    frames[held_out.AUTOENCODER] = autoencoder.decode(autoencoder.encode(clip.frames[None]))[0]
    return frames


def turning_chunks(labels: np.ndarray, size: int) -> list[bool]:
    """Return for every chunk of `size` labels whether the camera turns left or right in at least half of them."""
    turns = np.array([any(actions.label_to_flags(int(label))[1][:2]) for label in labels])
    return [bool(chunk.mean() >= 0.5) for chunk in turns.reshape(-1, size)]


def _report(
    rows: list[dict[str, Any]],
    returns: dict[str, dict[str, list[float]]],
    still: list[list[float]],
    shown: list[results.Comparison],
) -> results.Report:
    psnr = {name: np.array([row["psnr"][name] for row in rows]) for name in CURVES}
    turning = np.array([row["turning"] for row in rows])
    gain = float((psnr[held_out.MODEL] - psnr[REPEATED])[:, :GAIN_CHUNKS].mean())
    gaps = (psnr[held_out.MODEL] - psnr[held_out.SWAPPED])[turning]
    swap_gap = float(gaps.mean()) if gaps.size else None
    curves = {name: values.mean(axis=0).tolist() for name, values in psnr.items()}
    revisit_psnr = {
        angle: {name: float(np.mean(values)) for name, values in found.items() if values}
        for angle, found in returns.items()
    }
    bars = {
        f"{angle} degrees,\n{name}": value for angle, found in revisit_psnr.items() for name, value in found.items()
    }
    still_psnr = np.mean(still, axis=0).tolist() if still else []
    chunks = min(GAIN_CHUNKS, len(curves[held_out.MODEL]))
    swap_text = "no chunk turns" if swap_gap is None else f"{swap_gap:+.2f} dB"
    summary = [
        (f"gain over the repeated first frame, first {chunks} chunks", f"{gain:+.2f} dB"),
        (f"gain over swapped controls, {gaps.size} turning chunks", swap_text),
    ]
    for angle, found in revisit_psnr.items():
        summary += [
            (f"view after a turn of {angle} degrees, {name}", f"{value:.2f} dB") for name, value in found.items()
        ]
    if still_psnr:
        summary.append((f"standing still, chunk {len(still_psnr)}", f"{still_psnr[-1]:.2f} dB"))
    images = measures.image_curves(rows)
    summary += measures.summary(images)
    numbers = {
        "windows": len(rows),
        "psnr_per_chunk": curves,
        "images_per_chunk": images,
        "gain_over_repeated_first_frame": gain,
        "gain_over_swapped_on_turning_chunks": swap_gap,
        "turning_chunks": int(gaps.size),
        "revisit_psnr": revisit_psnr,
        "still_psnr_per_chunk": still_psnr,
        "per_window": rows,
        "per_revisit": returns,
    }
    return results.Report(
        numbers=numbers,
        curves=curves,
        images=images,
        bars=bars,
        bars_title="A view that comes back",
        summary=summary,
        rollouts=shown,
    )
