"""Errors of the storage library: a full disk recognised, and its threads' tracebacks kept from the user."""

import errno
import logging
import os
import sys
from typing import Any

DISK_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


def disk_problem(error: BaseException | None) -> str:
    """What the operating system says about a full disk, from an error or its causes; empty for any other error."""
    while error is not None:
        for number in DISK_ERRORS:
            if os.strerror(number) in str(error) or (isinstance(error, OSError) and error.errno == number):
                return os.strerror(number)
        error = error.__cause__ or error.__context__
    return ""


class _Silence(logging.Filter):
    active = False

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and disk_problem(record.exc_info[1]):
            silence()
        return not _Silence.active


def silence() -> None:
    """A failure is known and will be told in one sentence: drop what the library's threads still report about it."""
    _Silence.active = True


def install() -> None:
    """Let `silence`, or the first sign of a full disk, quieten the library."""
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    if any(isinstance(item, _Silence) for item in loggers[0].filters):
        return
    for logger in loggers:
        logger.addFilter(_Silence())
    print_unraisable = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        # Operations that were under way report to an event loop that the failure has closed.
        if not _Silence.active:
            print_unraisable(unraisable)

    sys.unraisablehook = hook
