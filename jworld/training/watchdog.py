"""Watchdog that ends a hanging process, so that a scheduler can restart it, and prints the stack of every thread."""

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, TextIO

from jworld.utils import errors

#: Seconds after which C code ends a process whose threads can no longer run Python.
_GRACE = 30.0


class Watchdog:
    """Context that needs a `beat` at least every `minutes`; otherwise it prints all stacks and ends the process.

    0 minutes disable it. A second timer inside `faulthandler` needs no interpreter lock: it ends the process, with exit
    code 1, even when a call that never returns holds that lock.
    """

    def __init__(self, minutes: float, *, file: TextIO | None = None) -> None:
        """Prepare the watchdog; `file` must have a descriptor (default: stderr)."""
        self._seconds = 60.0 * minutes
        self._file = file or sys.stderr
        self._last = time.monotonic()
        self._beats = 0
        self._pauses = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._last = time.monotonic()
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._done.set()
        if self._seconds:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """Report progress."""
        self._last = time.monotonic()
        self._beats += 1

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Wait for the body as long as it takes."""
        self._pauses += 1
        try:
            yield
        finally:
            self._last = time.monotonic()
            self._pauses -= 1

    def _left(self) -> float:
        """Return the seconds that are left for the next beat."""
        return self._seconds if self._pauses else self._last + self._seconds - time.monotonic()

    def _watch(self) -> None:
        while (left := self._left()) > 0:
            faulthandler.dump_traceback_later(left + _GRACE, exit=True, file=self._file)
            # The timer in C is then at most a quarter of the limit ahead of the beats.
            if self._done.wait(min(left, self._seconds / 4)):
                return
        self._abort()

    def _abort(self) -> None:
        print(
            f"error: no step ended for {self._seconds / 60:g} minutes (steps of this launch before: {self._beats}); "
            "the stack of every thread follows. Run the same command again to resume; raise "
            "config.log.watchdog_minutes if steps or the compilation take that long",
            file=self._file,
            flush=True,
        )
        faulthandler.dump_traceback(file=self._file, all_threads=True)
        self._file.flush()
        os._exit(errors.RESTART)
