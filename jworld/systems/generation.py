"""Generation with an open session, shared by `jworld.generate`, the Python API and interactive front ends."""

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx

from jworld.data import camera_grids, media
from jworld.data.conversations import chat
from jworld.diffusion import step_reports
from jworld.evaluation import results
from jworld.models.layers import quantized
from jworld.systems import asking, live, sessions
from jworld.systems.base import AnySystem, TextSystem, VideoSystem
from jworld.systems.sessions import TextSession, VideoSession, WatchedSession
from jworld.utils import compilation, errors, notes

#: Parameters from which on every denoising step is reported, because a chunk may take minutes. In small models the
#: reports would take a noticeable share of a step.
WATCHED_PARAMETERS = 500_000_000
#: First image or video of a rollout, as an array or a file; one for each of several cameras.
Start = np.ndarray | str | pathlib.Path | Sequence[np.ndarray | str | pathlib.Path] | None


def video_system(system: AnySystem, config: ml_collections.ConfigDict) -> VideoSystem[Any, Any]:
    """Return `system` as one that generates videos, or raise a `UserError`."""
    if not isinstance(system, VideoSystem):
        raise errors.UserError(
            f"the checkpoint is of the system {config.system!r}, which generates no videos: measure it with python -m "
            "jworld.evaluate, or give another --checkpoint"
        )
    return system


def text_system(system: AnySystem, config: ml_collections.ConfigDict) -> TextSystem[Any, Any]:
    """Return `system` as one that answers in text, or raise a `UserError`."""
    if not isinstance(system, TextSystem):
        raise errors.UserError(f"the checkpoint is of the system {config.system!r}, which does not answer in text")
    return system


def check_quantized(system: AnySystem, kind: str) -> None:
    """Raise a `UserError` if a system does not generate with weights of 8 bits, or they need a missing package."""
    quantized.check_installed()
    if kind not in quantized.KINDS:
        raise errors.UserError(f"quantize is {kind!r}, expected one of {', '.join(quantized.KINDS)}")
    if not isinstance(system, VideoSystem):
        raise errors.UserError(
            f"--quantize {kind}: only models that generate videos have quantized weights: leave it out"
        )


def steering(system: VideoSystem[Any, Any], *, pose: str | None, actions: str | None) -> str | None:
    """Return the value of the flag that steers the system; a `UserError` if the other flag is given."""
    given = {"--pose": pose, "--actions": actions}
    for flag, text in given.items():
        if text is not None and flag != system.steering:
            raise errors.UserError(
                f"{flag} {text}: this model is steered by {system.steering}: see python -m jworld.generate --help"
            )
    return given[system.steering]


def find_start(image: Start, system: VideoSystem[Any, Any], *, fps: float | None) -> np.ndarray | None:
    """Return the first image, or the last frames of a first video that a session continues.

    Args:
      image: an array, or a file of which only these frames are decoded; or one per camera.
      system: the system.
      fps: frames per second of the generated video, at which the frames of a file are chosen by their time stamps;
        None keeps those of the file.

    Raises:
      UserError: it is missing for a model that needs it, given for a model without one, or cannot be read.
    """
    if system.needs_image and image is None:
        raise errors.UserError("--image is missing: the model continues an image: give a PNG, JPEG or MP4 file")
    if not system.needs_image and image is not None:
        name = "" if isinstance(image, np.ndarray) else f" {image}"
        raise errors.UserError(f"--image{name}: the model makes clips from a caption alone: leave --image out")
    if system.cameras or isinstance(image, list | tuple):
        return _find_cameras(image, system, fps=fps)
    if isinstance(image, str | pathlib.Path):
        return media.read_start(pathlib.Path(image), "--image", frames=system.start_frames, fps=fps)
    assert not isinstance(image, Sequence)
    return image


def _find_cameras(image: Start, system: VideoSystem[Any, Any], *, fps: float | None) -> np.ndarray:
    """Return the start of a video of several cameras as a grid, [T, rows * H, columns * W, 3]."""
    files: list[Any] = list(image) if isinstance(image, list | tuple) else [image]
    if not system.cameras:
        raise errors.UserError(f"--image is given {len(files)} times: a video begins with one: leave one")
    found = [
        media.read_start(pathlib.Path(file), "--image", frames=system.start_frames, fps=fps)
        if isinstance(file, str | pathlib.Path)
        else file
        for file in files
    ]
    starts, names = [sessions.as_video(one) for one in found], ", ".join(system.cameras)
    # A single image is rather that of one camera than a grid.
    if len(starts) == 1 and (found[0].ndim == 4 or not isinstance(files[0], str | pathlib.Path)):
        camera_grids.split(starts[0], len(system.cameras))
        return starts[0]
    if len(starts) != len(system.cameras):
        raise errors.UserError(
            f"--image: found {len(starts)}, expected one for each camera in the order {names}, or one video of their "
            "grid"
        )
    for file, start in zip(files, starts, strict=True):
        if start.shape != starts[0].shape:
            own, expected = (f"{x.shape[0]} frames of {x.shape[2]}x{x.shape[1]}" for x in (start, starts[0]))
            raise errors.UserError(f"--image {file} has {own}, expected {expected} as of the first camera: resize it")
    return camera_grids.join(np.stack(starts))


def note_start(
    image: pathlib.Path | tuple[pathlib.Path, ...] | None, start: np.ndarray | None, system: VideoSystem[Any, Any]
) -> None:
    """Print what the system does with fewer frames than it continues, if that is not what a user expects."""
    if system.cameras and isinstance(image, pathlib.Path):
        notes.note(f"--image {image} is read as a grid of the cameras {', '.join(system.cameras)}")
    frames = 1 if start is None or start.ndim == 3 else len(start)
    if start is not None and (text := system.start_note(frames)):
        first = image[0] if isinstance(image, tuple) else image
        notes.note(f"--image {first}: {text}")


def is_watched(model: nnx.Module) -> bool:
    """Return whether the denoising steps of a model are reported one by one."""
    return sum(int(leaf.size) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))) >= WATCHED_PARAMETERS


def roll_out(
    session: VideoSession,
    actions: Sequence[results.Action],
    *,
    mesh: jax.sharding.Mesh,
    image: np.ndarray | None,
    prompt: str,
    seed: int,
    negative_prompt: str | None = None,
    take: Callable[[np.ndarray], object],
    advance: Callable[[], object] = lambda: None,
    watch: step_reports.Listener | None = None,
) -> tuple[list[int], dict[str, Any]]:
    """Generate chunk by chunk.

    Args:
      session: open session; it is reset.
      actions: one action per chunk.
      mesh: mesh of the model.
      image: first image or video, or None.
      prompt: caption.
      seed: random seed for the noise.
      negative_prompt: negative prompt of the guidance; None for that of the config.
      take: receives the frames of every chunk.
      advance: called after every chunk.
      watch: called after every denoising step with its number and the number of steps of a chunk; None for nobody.

    Returns:
      Frames of every chunk, and timings in seconds; compilation is counted separately.
    """
    counts, spans = [], []
    if isinstance(session, WatchedSession):
        session.watch(watch)
    with compilation.CompileTimes() as compiling, jax.set_mesh(mesh):
        began = time.time()
        session.reset(image, prompt, seed=seed, negative_prompt=negative_prompt)
        ready = time.time()
        for action in actions:
            start = time.time()
            if action.prompt is not None:
                assert isinstance(session, live.DescribedSession)
                session.describe(action.prompt)
            frames = session.step(action.control)
            spans.append((start, time.time()))
            take(frames)
            counts.append(len(frames))
            advance()
    seconds = [end - start - compiling.seconds(start, end) for start, end in spans]
    return counts, {
        "compile_seconds": compiling.seconds(began, spans[-1][1]),
        "start_seconds": ready - began - compiling.seconds(began, ready),
        "chunk_seconds": seconds,
        "chunk_p50_seconds": float(np.percentile(seconds, 50)),
        "chunk_p95_seconds": float(np.percentile(seconds, 95)),
        "frames_per_second": sum(counts) / sum(seconds),
    }


def answer(
    session: TextSession,
    images: Sequence[np.ndarray],
    prompt: str | Sequence[chat.Turn],
    *,
    mesh: jax.sharding.Mesh,
    sampling: asking.Sampling | None = None,
    take: Callable[[int], object] = lambda token: None,
) -> tuple[list[int], dict[str, float]]:
    """Answer a question or a conversation token by token; `take` receives every token.

    Returns:
      The tokens, and timings in seconds; compilation is counted separately.
    """
    tokens: list[int] = []
    moments = []
    with compilation.CompileTimes() as compiling, jax.set_mesh(mesh):
        began = time.time()
        session.reset(images, prompt, sampling=sampling)
        ready = time.time()
        while (token := session.step()) is not None:
            tokens.append(token)
            take(token)
            moments.append(time.time())
    last = moments[-1] if moments else ready
    spent = last - ready - compiling.seconds(ready, last)
    return tokens, {
        "compile_seconds": compiling.seconds(began, last),
        "start_seconds": ready - began - compiling.seconds(began, ready),
        "tokens_per_second": len(tokens) / spent if spent > 0 else 0.0,
    }
