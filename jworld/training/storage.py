"""The storage library: detects a full disk, suppresses tracebacks of its threads, and keeps its memory flat."""

import importlib
import logging
import os
import sys
import threading
from typing import Any

from jworld.utils import errors

#: The function of Orbax that counts bytes.
_BYTE_COUNT = "get_tensorstore_raw_bytes"


def disk_problem(error: BaseException | None) -> str:
    """Return the operating system's message about a full disk, from an error or its causes; "" for any other error."""
    while error is not None:
        for number in errors.DISK_FULL:
            if os.strerror(number) in str(error) or (isinstance(error, OSError) and error.errno == number):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return ""


class _Silence(logging.Filter):
    active = False

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if disk_problem(error):
            silence()
        return not _noise(error)


def _noise(error: BaseException | None) -> bool:
    """Return whether to suppress an error: one after a failure, or of an event loop that the failure closed."""
    return _Silence.active or (isinstance(error, RuntimeError) and str(error) == "Event loop is closed")


def silence() -> None:
    """Suppress the library's further reports after a failure that is reported as one message."""
    _Silence.active = True


def stop_byte_counts() -> None:
    """Stop Orbax from counting the bytes on disk of every item, for a report that is not used here.

    TensorStore never frees the strings that it converts from JSON for Python (seen in 0.1.76 to 0.1.86), and its
    counters are hundreds of them: 46 kB per save.
    """
    try:
        module = importlib.import_module("orbax.checkpoint._src.serialization.tensorstore_utils")
    except ImportError:
        return
    if hasattr(module, _BYTE_COUNT):
        vars(module)[_BYTE_COUNT] = lambda *_, **__: 0


def install() -> None:
    """Install the filters that `silence`, or the first sign of a full disk, activates, and stop the byte counts."""
    stop_byte_counts()
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    if any(isinstance(item, _Silence) for item in loggers[0].filters):
        return
    for logger in loggers:
        logger.addFilter(_Silence())
    print_unraisable, print_thread = sys.unraisablehook, threading.excepthook

    def unraisable_hook(unraisable: Any) -> None:
        if not _noise(unraisable.exc_value):
            print_unraisable(unraisable)

    def thread_hook(arguments: Any) -> None:
        if not _noise(arguments.exc_value):
            print_thread(arguments)

    sys.unraisablehook, threading.excepthook = unraisable_hook, thread_hook
