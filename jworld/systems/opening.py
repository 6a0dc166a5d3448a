"""Sessions that are opened, and whose programs are compiled, while the weights are read."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import nnx

from jworld.diffusion import step_reports
from jworld.parallel.programs import Program
from jworld.systems import asking, generation, text_answers, video_files
from jworld.systems.base import TextSystem, VideoSystem
from jworld.systems.sessions import CompiledSession, TextSession, VideoSession, WatchedSession
from jworld.utils import errors


def _compile(programs: Iterable[Program]) -> None:
    for program in programs:
        _ = program.compiled


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
            _compile(self.session.programs())
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

    It compiles for a first question or, with `questions`, for a file of them.

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
        questions: Sequence[asking.Question] = (),
        batch: int = 1,
    ) -> None:
        """Set up the opener for a first question, or for `questions` that are answered in batches of `batch`.

        Without either, nothing is compiled. `text` is that of the system turn.
        """
        self._system, self._sampling, self._images = system, sampling, images
        self._questions, self._batch = questions, batch
        self._turns = text_answers.asked(text_answers.opened(text), prompt, len(images)) if prompt else []
        self._seconds = 0.0

    def __call__(self, encoders: Any, model: nnx.Module) -> None:
        """Open the session and compile; the model's parameters may be descriptions."""
        began = time.time()
        self.session = self._system.session(model, encoders)
        if self._turns:
            _compile(self.session.programs(self._images, self._turns, sampling=self._sampling))
        if self._questions:
            try:
                _compile(self._system.answers(model, encoders).programs(self._questions, batch=self._batch))
            except ValueError as error:
                raise errors.UserError(f"--batch: {error}: correct the file") from error
        self._seconds = time.time() - began

    def describe_loading(self, loading: float) -> str:
        """Return the time before the first question of a file, from the seconds of loading."""
        return f"loading {loading:.1f} s (compiling at the same time {self._seconds:.1f} s)"

    def describe(self, loading: float, timings: Mapping[str, float]) -> str:
        """Return the time to the first token by part, from the seconds of loading and the timings of an answer."""
        compiling, start = timings["compile_seconds"], timings["start_seconds"]
        return (
            f"first token after {loading + compiling + start:.1f} s: {self.describe_loading(loading)}, further "
            f"compiling {compiling:.1f} s, prompt and images {start:.1f} s"
        )
