"""When each step began and ended on the device, without making the training loop wait."""

import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import jax


class StepTime(NamedTuple):
    """One step.

    Attributes:
      busy: seconds that the device worked on it: from the end of the step before, or from its own dispatch where that
        came later, to its end.
      idle: seconds that the device had nothing to do before it.
    """

    busy: float
    idle: float


class StepClock:
    """Notes the ends of steps in a thread of its own, which waits for one result after the other.

    The loop dispatches steps ahead of the device and never asks for their results; the thread does, and while it waits
    it holds no lock that the loop needs. What it sees is late by its own waking up, well below a millisecond where the
    machine has a core to spare.
    """

    def __init__(self, on_end: Callable[[], None] = lambda: None) -> None:
        """`on_end` is called after every step that ended without an error."""
        self._on_end = on_end
        self._noted: queue.Queue[tuple[jax.Array, float] | None] = queue.Queue()
        self._times: list[StepTime] = []
        self._last: float | None = None  # end of the step before
        self._thread = threading.Thread(target=self._run, name="step clock", daemon=True)
        self._thread.start()

    def add(self, result: jax.Array, *, dispatched: float) -> None:
        """Note a step by an array that it makes; `dispatched` is `time.perf_counter()` just before its dispatch."""
        self._noted.put((result, dispatched))

    def take(self) -> list[StepTime]:
        """Times of the steps since the last call, once all of them have ended; steps that failed are left out."""
        self._noted.join()
        times, self._times = self._times, []
        return times

    def close(self) -> None:
        """Let the thread end after the steps that it still waits for."""
        self._noted.put(None)

    def _run(self) -> None:
        while (item := self._noted.get()) is not None:
            self._wait(*item)
            self._noted.task_done()

    def _wait(self, result: jax.Array, dispatched: float) -> None:
        try:
            result.block_until_ready()
        except Exception:
            return  # the loop meets the same error when it fetches the step's metrics
        end = time.perf_counter()
        begin = dispatched if self._last is None else max(self._last, dispatched)
        self._times.append(StepTime(busy=end - begin, idle=0.0 if self._last is None else begin - self._last))
        self._last = end
        self._on_end()
