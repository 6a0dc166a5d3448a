"""Preemption notice (SIGTERM) as a flag that the training loop polls, to save once and exit cleanly."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Context in which SIGTERM sets a flag instead of ending the process.

    In multi-process runs JAX handles the signal from the start of the run; a signal to any process applies to all.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._previous: Any = None
        self._alone = jax.process_count() == 1

    def reached(self, step: int) -> bool:
        """Return whether to save and exit after this step, the same in every process; call it after every step."""
        return self._event.is_set() if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def __enter__(self) -> "Preemption":
        if self._alone:
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *error: Any) -> None:
        if self._alone:
            signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._event.set()
