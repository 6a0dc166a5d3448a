"""How close an autoencoder comes to held-out videos, beside the linear codec with latents of the same size."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress
from flax import nnx

from jworld.evaluation import results
from jworld.models.autoencoders import linear, network
from jworld.systems.autoencoder import data
from jworld.utils import errors, indices

MODEL, LINEAR = "autoencoder", "linear codec, same latent size"
#: PSNR of a perfect reconstruction, where the true one is infinite.
BEST_PSNR = 100.0
#: Clips that the contact sheet shows.
SHOWN = 4

Reconstruct = Callable[[np.ndarray], np.ndarray]


def reconstructor(model: network.VideoAutoencoder) -> Reconstruct:
    """uint8 [T, H, W, 3] -> its reconstruction from the posterior's mean."""

    @nnx.jit
    def run(model: network.VideoAutoencoder, video: Any) -> jax.Array:
        return linear.to_uint8(model.decode(model.encode(video))[:, -video.shape[1] :])

    return lambda video: np.asarray(run(model, video[None]))[0]


def choose_clips(files: data.FrameFiles, *, frames: int, count: int) -> list[tuple[int, int]]:
    """At most `count` pairs (held-out video, first frame), spread over the videos and along each."""
    lengths = files.lengths("val")
    all_clips = [
        (video, start) for video, length in enumerate(lengths) for start in range(0, length - frames + 1, frames)
    ]
    if not all_clips:
        raise errors.UserError(
            f"the longest of {len(lengths)} held-out videos in {files.directory} has {max(lengths)} frames, a clip "
            f"needs {frames}: ask for shorter clips"
        )
    picked = indices.evenly(len(all_clips), count)
    return [all_clips[i] for i in picked]


def read(files: data.FrameFiles, clip: tuple[int, int], frames: int) -> np.ndarray:
    video, start = clip
    return np.array(files.read("val", video)[start : start + frames])


def sample(reconstruct: Reconstruct, files: data.FrameFiles, *, count: int, frames: int) -> results.Comparison:
    """Held-out clips one after the other, each a chunk."""
    chosen = choose_clips(files, frames=frames, count=count)
    truth = [read(files, clip, frames) for clip in chosen]
    made = [reconstruct(clip) for clip in truth]
    chunks = [
        results.Chunk(
            start=i * frames,
            stop=(i + 1) * frames,
            action=f"{files.name('val', video)} from {start}",
            psnr=psnr(truth[i], made[i]),
        )
        for i, (video, start) in enumerate(chosen)
    ]
    return results.Comparison(title="", truth=np.concatenate(truth), prediction=np.concatenate(made), chunks=chunks)


def psnr(truth: np.ndarray, made: np.ndarray) -> float:
    """dB, at most `BEST_PSNR`."""
    return min(linear.psnr(truth, made), BEST_PSNR)


def latent_spans(latents: int, ratio: int) -> list[tuple[int, int]]:
    """Frames (start, stop) of every latent."""
    return [(max(ratio * i - ratio + 1, 0), ratio * i + 1) for i in range(latents)]


def evaluate(
    model: network.VideoAutoencoder,
    files: data.FrameFiles,
    options: results.Options,
    console: rich.console.Console,
) -> results.Report:
    """PSNR per latent of `options.windows` held-out clips of `options.chunks` latents each."""
    ratio = model.config.temporal_ratio
    spans = latent_spans(options.chunks, ratio)
    frames = spans[-1][1]
    chosen = choose_clips(files, frames=frames, count=options.windows)
    methods = {MODEL: reconstructor(model)}
    codec = fit_linear(model, files, seed=options.seed, console=console)
    if codec is not None:
        methods[LINEAR] = functools.partial(through, codec)
    rows: list[dict[str, Any]] = []
    shown: list[results.Comparison] = []
    shown_at = indices.evenly(len(chosen), SHOWN)
    for i, clip in enumerate(rich.progress.track(chosen, "evaluating", console=console)):
        truth = read(files, clip, frames)
        made = {name: method(truth) for name, method in methods.items()}
        values = {name: [psnr(truth[a:b], video[a:b]) for a, b in spans] for name, video in made.items()}
        rows.append({"video": files.name("val", clip[0]), "first_frame": clip[1], "psnr": values})
        if i in shown_at:
            shown.append(_compare(truth, made[MODEL], spans, title=f"{files.name('val', clip[0])} from {clip[1]}"))
    return _report(rows, list(methods), shown)


def fit_linear(
    model: network.VideoAutoencoder, files: data.FrameFiles, *, seed: int, console: rich.console.Console
) -> linear.LinearAutoencoder | None:
    """The linear codec of the training videos with the ratios and channels of `model`; None where it has none such."""
    config = model.config
    try:
        settings = linear.LinearConfig(
            channels=config.latent_channels, spatial_ratio=config.spatial_ratio, temporal_ratio=config.temporal_ratio
        )
    except errors.UserError:
        return None
    lengths = [(length - 1) // config.temporal_ratio * config.temporal_ratio + 1 for length in files.lengths("train")]
    videos = rich.progress.track(range(len(lengths)), "fitting the linear codec", console=console)
    return linear.fit((np.asarray(files.read("train", i)[: lengths[i]]) for i in videos), settings, seed=seed)


def through(codec: linear.LinearAutoencoder, video: np.ndarray) -> np.ndarray:
    """uint8 [T, H, W, 3] encoded and decoded."""
    return np.asarray(linear.to_uint8(codec.decode(codec.encode(jnp.asarray(video[None])))))[0]


def _compare(truth: np.ndarray, made: np.ndarray, spans: list[tuple[int, int]], *, title: str) -> results.Comparison:
    whole = results.Chunk(start=0, stop=spans[-1][1], action="reconstructed", psnr=psnr(truth, made))
    return results.Comparison(title=title, truth=truth, prediction=made, chunks=[whole])


def _report(rows: list[dict[str, Any]], names: list[str], shown: list[results.Comparison]) -> results.Report:
    curves = {name: np.mean([row["psnr"][name] for row in rows], axis=0).tolist() for name in names}
    means = {name: float(np.mean(values)) for name, values in curves.items()}
    summary = [(f"held-out PSNR, {name}", f"{value:.2f} dB") for name, value in means.items()]
    numbers = {"windows": len(rows), "psnr_per_latent": curves, "psnr": means, "per_window": rows}
    return results.Report(numbers=numbers, curves=curves, bars={}, bars_title="", summary=summary, rollouts=shown)
