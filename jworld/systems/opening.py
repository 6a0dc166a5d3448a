"""Sessions that are opened, and whose programs are compiled, while the weights are read."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from jworld.diffusion import step_reports
from jworld.systems import asking, generation, text_answers, video_files
from jworld.systems.base import CompiledSession, TextSession, TextSystem, VideoSession, VideoSystem, WatchedSession


class Opening:
    """Opener of a session of a video model, to be called while the weights are read; see `runs.load`.

    Attributes:
      session: the session, after the call.
      listener: for models whose chunks take minutes, the listener that reports denoising steps to `bar`; else None.
      bar: the progress of the current video.
    """

    session: VideoSession

    def __init__(self, system: VideoSystem[Any, Any]) -> None:
        self._system, self._seconds = system, 0.0
        self.listener: step_reports.Listener | None = None
        self.bar: video_files.ProgressBar | None = None

    def __call__(self, encoders: Any, model: nnx.Module) -> None:
        """Open the session and compile; the model's parameters may be descriptions."""
        began = time.time()
        self.session = self._system.session(model, encoders)
        if generation.is_watched(model):
            # One function for all videos, because it is a part of the programs.
            self.listener = self._report
        if isinstance(self.session, WatchedSession):
            self.session.watch(self.listener)
        if isinstance(self.session, CompiledSession):
            self.session.compile()
        self._seconds = time.time() - began

    def _report(self, done: int, steps: int) -> None:
        if self.bar is not None:
            self.bar.step(done, steps)

    def describe(self, loading: float, timings: Mapping[str, Any]) -> str:
        """Return the time to the first chunk by part, from the seconds of loading and the timings of a rollout."""
        compiling, start = timings["compile_seconds"], timings["start_seconds"]
        chunk = timings["chunk_seconds"][0]
        return (
            f"first chunk after {loading + compiling + start + chunk:.1f} s: loading {loading:.1f} s (compiling at the "
            f"same time {self._seconds:.1f} s), further compiling {compiling:.1f} s, prompt and image {start:.1f} s, "
            f"chunk {chunk:.1f} s"
        )


class TextOpening:
    """Opener of a session that answers in text, to be called while the weights are read; see `runs.load`.

    Attributes:
      session: the session, after the call.
    """

    session: TextSession

    def __init__(
        self,
        system: TextSystem[Any, Any],
        prompt: str,
        images: Sequence[np.ndarray],
        *,
        sampling: asking.Sampling,
        text: str = "",
    ) -> None:
        """Set up the opener for a first question; "" compiles nothing. `text` is that of the system turn."""
        self._system, self._sampling, self._images = system, sampling, images
        self._turns = text_answers.asked(text_answers.opened(text), prompt, len(images)) if prompt else []
        self._seconds = 0.0

    def __call__(self, encoders: Any, model: nnx.Module) -> None:
        """Open the session and compile; the model's parameters may be descriptions."""
        began = time.time()
        self.session = self._system.session(model, encoders)
        if self._turns:
            self.session.compile(self._images, self._turns, sampling=self._sampling)
        self._seconds = time.time() - began

    def describe(self, loading: float, timings: Mapping[str, float]) -> str:
        """Return the time to the first token by part, from the seconds of loading and the timings of an answer."""
        compiling, start = timings["compile_seconds"], timings["start_seconds"]
        return (
            f"first token after {loading + compiling + start:.1f} s: loading {loading:.1f} s (compiling at the same "
            f"time {self._seconds:.1f} s), further compiling {compiling:.1f} s, prompt and images {start:.1f} s"
        )
