"""The scheduler's notice, SIGTERM, as a flag that the training loop polls: save once, leave cleanly."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """A context in which SIGTERM does not end the process but makes `reached` true.

    Among several processes JAX takes the signal from the start of the run on; one that any of them gets concerns all.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._previous: Any = None
        self._alone = jax.process_count() == 1

    def reached(self, step: int) -> bool:
        """Whether to save and leave after this step, the same in every process; to be asked after every step."""
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
