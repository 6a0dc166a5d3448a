"""Preemption notice (SIGTERM, Ctrl-C) as a flag that the training loop polls, to save once and exit cleanly."""

import contextlib
import os
import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from jworld.utils import interrupts


class Preemption:
    """Context in which SIGTERM, and the first Ctrl-C of a command, set a flag instead of ending the process.

    In multi-process runs JAX handles the signal from the start of the run; a signal to any process applies to all.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._previous: Any = None
        self._alone = jax.process_count() == 1
        self._exits = contextlib.ExitStack()

    def reached(self, step: int) -> bool:
        """Return whether to save and exit after this step, the same in every process; call it after every step."""
        return self._event.is_set() if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def __enter__(self) -> "Preemption":
        if self._alone:
            self._previous = signal.signal(signal.SIGTERM, self._handle)
        self._exits.enter_context(interrupts.saving(self._request))
        return self

    def __exit__(self, *error: Any) -> None:
        self._exits.close()
        if self._alone:
            signal.signal(signal.SIGTERM, self._previous)

    def _request(self) -> None:
        # In multi-process runs the request goes to all processes by way of JAX, whose notice is SIGTERM.
        if self._alone:
            self._event.set()
        else:
            os.kill(os.getpid(), signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._event.set()
