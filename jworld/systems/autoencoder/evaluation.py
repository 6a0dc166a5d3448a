"""Reconstruction quality on held-out videos, compared with the linear autoencoder with latents of the same size."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress

from jworld.evaluation import measures, results
from jworld.models.autoencoders import linear, network
from jworld.systems.autoencoder import data, transform
from jworld.utils import errors, indices

MODEL, LINEAR = "autoencoder", "linear autoencoder, same latent size"
#: PSNR (dB) of a perfect reconstruction, whose true value is infinite.
BEST_PSNR = 100.0
#: Clips on the contact sheet.
SHOWN = 4

Reconstruct = Callable[[np.ndarray], np.ndarray]


def reconstructor(model: network.VideoAutoencoder) -> Reconstruct:
    """Return a function from a clip uint8 [T, H, W, 3] to its reconstruction from the posterior's mean."""

    @jax.jit
    def run(model: network.VideoAutoencoder, video: Any) -> jax.Array:
        return linear.to_uint8(model.decode(model.encode(video))[:, -video.shape[1] :])

    return lambda video: np.asarray(run(model, video[None]))[0]


def choose_clips(files: data.FrameFiles, *, frames: int, count: int) -> list[tuple[int, int]]:
    """Choose at most `count` clips, spread over the held-out videos and along each.

    Returns:
      Pairs (number of the video, first frame).

    Raises:
      UserError: all videos are shorter than `frames`.
    """
    lengths = files.lengths("val")
    all_clips = [
        (video, start) for video, length in enumerate(lengths) for start in range(0, length - frames + 1, frames)
    ]
    if not all_clips:
        raise errors.UserError(
            f"the longest of {len(lengths)} held-out videos in {files.directory} has {max(lengths)} frames, a clip "
            f"needs {frames}: choose shorter clips"
        )
    picked = indices.evenly(len(all_clips), count)
    return [all_clips[i] for i in picked]


def read(files: data.FrameFiles, clip: tuple[int, int], frames: int) -> np.ndarray:
    """Return a clip of `choose_clips`, uint8 [frames, H, W, 3]."""
    video, start = clip
    return np.array(files.read("val", video)[start : start + frames])


def sample(reconstruct: Reconstruct, files: data.FrameFiles, *, count: int, frames: int) -> results.Comparison:
    """Reconstruct held-out clips; each is a chunk of the result."""
    chosen = choose_clips(files, frames=frames, count=count)
    truth = [read(files, clip, frames) for clip in chosen]
    reconstructed = [reconstruct(clip) for clip in truth]
    chunks = [
        results.Chunk(
            start=i * frames,
            stop=(i + 1) * frames,
            action=f"{files.name('val', video)} from {start}",
            psnr=psnr(truth[i], reconstructed[i]),
        )
        for i, (video, start) in enumerate(chosen)
    ]
    return results.Comparison(
        title="", truth=np.concatenate(truth), prediction=np.concatenate(reconstructed), chunks=chunks
    )


def psnr(truth: np.ndarray, prediction: np.ndarray) -> float:
    """Return the PSNR in dB, at most `BEST_PSNR`."""
    return min(linear.psnr(truth, prediction), BEST_PSNR)


def latent_spans(latents: int, ratio: int) -> list[tuple[int, int]]:
    """Return the frames (start, stop) of every latent."""
    return [(max(ratio * i - ratio + 1, 0), ratio * i + 1) for i in range(latents)]


def evaluate(
    model: network.VideoAutoencoder,
    files: data.FrameFiles,
    options: results.Options,
    console: rich.console.Console,
) -> results.Report:
    """Measure the PSNR per latent of `options.windows` held-out clips of `options.chunks` latents each."""
    ratio = model.config.temporal_ratio
    spans = latent_spans(options.chunks, ratio)
    frames = spans[-1][1]
    chosen = choose_clips(files, frames=frames, count=options.windows)
    methods = {MODEL: reconstructor(model)}
    if (settings := transform.settings(model.config)) is not None:
        fitted = transform.load_or_fit(files, settings, console=console)
        methods[LINEAR] = functools.partial(round_trip, fitted)
    rows: list[dict[str, Any]] = []
    shown: list[results.Comparison] = []
    shown_at = indices.evenly(len(chosen), SHOWN)
    for i, clip in enumerate(rich.progress.track(chosen, "evaluating", console=console)):
        truth = read(files, clip, frames)
        videos = {name: method(truth) for name, method in methods.items()}
        values = {name: [psnr(truth[a:b], video[a:b]) for a, b in spans] for name, video in videos.items()}
        found = measures.images(truth, videos, patch=model.config.spatial_ratio)
        images = {name: {key: found[key][name] for key in measures.IMAGES} for name in videos}
        rows.append({"video": files.name("val", clip[0]), "first_frame": clip[1], "psnr": values, "images": images})
        options.keep(rows[-1])
        if i in shown_at:
            shown.append(_compare(truth, videos[MODEL], spans, title=f"{files.name('val', clip[0])} from {clip[1]}"))
    return _report(rows, list(methods), shown)


def round_trip(autoencoder: linear.LinearAutoencoder, video: np.ndarray) -> np.ndarray:
    """Encode and decode a video, uint8 [T, H, W, 3]."""
    decoded = linear.to_uint8(autoencoder.decode(autoencoder.encode(jnp.asarray(video[None]))))
    frames: np.ndarray = np.asarray(decoded)[0]
    return frames


def _compare(
    truth: np.ndarray, reconstructed: np.ndarray, spans: list[tuple[int, int]], *, title: str
) -> results.Comparison:
    whole = results.Chunk(start=0, stop=spans[-1][1], action="reconstructed", psnr=psnr(truth, reconstructed))
    return results.Comparison(title=title, truth=truth, prediction=reconstructed, chunks=[whole])


def _report(rows: list[dict[str, Any]], names: list[str], shown: list[results.Comparison]) -> results.Report:
    curves = {name: np.mean([row["psnr"][name] for row in rows], axis=0).tolist() for name in names}
    means = {name: float(np.mean(values)) for name, values in curves.items()}
    images = {
        name: {key: float(np.mean([row["images"][name][key] for row in rows])) for key in rows[0]["images"][name]}
        for name in names
    }
    summary = [(f"held-out PSNR, {name}", f"{value:.2f} dB") for name, value in means.items()]
    for name, found in images.items():
        text = f"SSIM {found['ssim']:.3f}, edges {found['edges']:.2f}, seams {found['seams']:.2f} times the truth's"
        summary.append((f"images, {name}", text))
    numbers = {"windows": len(rows), "psnr_per_latent": curves, "psnr": means, "images": images, "per_window": rows}
    return results.Report(numbers=numbers, curves=curves, bars={}, bars_title="", summary=summary, rollouts=shown)
