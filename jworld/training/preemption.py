"""SIGTERM as a flag that the training loop polls: save once, leave cleanly."""

import signal
import threading
from types import FrameType
from typing import Any


class Preemption:
    """A context in which SIGTERM does not end the process but sets `requested`."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._previous: Any = None

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def __enter__(self) -> "Preemption":
        self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def __exit__(self, *error: Any) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._event.set()
