"""Start and end of each step on the device, measured without blocking the training loop."""

import queue
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import jax


class StepTime(NamedTuple):
    """Time of one step.

    Attributes:
      busy: seconds of device work: from the end of the previous step, or from its own dispatch if later, to its end.
      idle: seconds that the device was idle before it.
    """

    busy: float
    idle: float


class StepClock:
    """Thread that records the end of each step by waiting for one result after the other.

    The loop dispatches steps ahead of the device and never waits for their results. The thread does, and holds no lock
    that the loop needs. Its times lag by its wake-up, well below a millisecond if the machine has a free core.
    """

    def __init__(self, on_end: Callable[[], None] = lambda: None) -> None:
        """Start the thread; `on_end` is called after every step that ended without an error."""
        self._on_end = on_end
        self._queued: queue.Queue[tuple[jax.Array, float] | None] = queue.Queue()
        self._times: list[StepTime] = []
        self._last: float | None = None  # end of the previous step
        self._thread = threading.Thread(target=self._run, name="step clock", daemon=True)
        self._thread.start()

    def add(self, result: jax.Array, *, dispatched: float) -> None:
        """Register a step by one of its output arrays.

        `dispatched` is `time.perf_counter()` just before its dispatch.
        """
        self._queued.put((result, dispatched))

    def take(self) -> list[StepTime]:
        """Return the times of the steps since the last call, once all of them have ended; failed steps are left out."""
        self._queued.join()
        times, self._times = self._times, []
        return times

    def close(self) -> None:
        """Let the thread end after the remaining steps."""
        self._queued.put(None)

    def _run(self) -> None:
        while (item := self._queued.get()) is not None:
            self._wait(*item)
            self._queued.task_done()

    def _wait(self, result: jax.Array, dispatched: float) -> None:
        try:
            result.block_until_ready()
        except Exception:
            return  # the loop gets the same error when it fetches the step's metrics
        end = time.perf_counter()
        begin = dispatched if self._last is None else max(self._last, dispatched)
        self._times.append(StepTime(busy=end - begin, idle=0.0 if self._last is None else begin - self._last))
        self._last = end
        self._on_end()
