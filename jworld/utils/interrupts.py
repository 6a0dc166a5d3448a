"""Ctrl-C in a command: one line at any moment, a save while a run trains, and an end at once with the second one.

Python runs signal handlers in the main thread, and not before a call of a library has returned: a compilation takes
minutes. A thread therefore reads the signals of a command too. It prints the line, and ends the process at the second
signal. A program that imports jworld keeps Python's own behavior.
"""

import atexit
import contextlib
import os
import pathlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

#: Exit code after Ctrl-C, 128 + SIGINT.
INTERRUPTED = 130
#: Modules that `python -m` starts as commands, and scripts next to the package.
_PACKAGES = ("jworld", "conversion")
#: Time that libraries have to end.
_END_SECONDS = 2.0
_AGAIN = "press Ctrl-C again to end at once"


class _State:
    """Signals so far, and what the first one does.

    Attributes:
      installed: signals are read by a thread.
      started: the command's main function runs; before it, nothing needs to be unwound.
      count: number of signals.
      raised: the KeyboardInterrupt was raised.
      reported: the line is printed; changed under `lock`.
      save: called instead of raising a KeyboardInterrupt, see `saving`.
    """

    installed = False
    started = False
    count = 0
    reported = False
    raised = False
    lock = threading.Lock()
    save: Callable[[], None] | None = None


def is_command() -> bool:
    """Return whether this process was started as one of our commands or scripts."""
    arguments = iter(sys.orig_argv[1:])
    for argument in arguments:
        if argument in ("-X", "-W"):
            next(arguments, "")
        elif argument == "-m":
            return next(arguments, "").partition(".")[0] in _PACKAGES
        elif not argument.startswith("-"):
            script = pathlib.Path(argument)
            return script.name == "jworld" or script.resolve().parent == pathlib.Path(__file__).parents[2] / "scripts"
    return False


def install() -> None:
    """Handle SIGINT in this process; does nothing outside of the main thread, or where SIGINT is ignored."""
    is_main = threading.current_thread() is threading.main_thread()
    if _State.installed or not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGINT, _handle)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    sys.unraisablehook = _quiet(sys.unraisablehook)
    _State.installed = True
    threading.Thread(target=_watch, args=(reader,), name="interrupts", daemon=True).start()


def _watch(reader: int) -> None:
    while signals := os.read(reader, 64):
        for number in signals:
            if number != signal.SIGINT:
                continue
            _State.count += 1
            _tell()
            if _State.count > 1 or not _State.started:
                os._exit(INTERRUPTED)


def _tell() -> None:
    """Print the line, once."""
    with _State.lock:
        if _State.reported:
            return
        _State.reported = True
    if not _State.started:
        text = "interrupted"
    elif _State.save:
        text = f"interrupted: the run saves after this step and ends; {_AGAIN}"
    else:
        text = f"interrupted: the command ends; {_AGAIN}"
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def _handle(number: int, frame: FrameType | None) -> None:
    if _State.save:
        _State.save()
    elif _State.started and not _State.raised:
        # Once: a second one could come while the first unwinds; then the thread ends the process.
        _State.raised = True
        signal.default_int_handler(number, frame)


def _quiet(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a hook for exceptions in finalizers and callbacks that leaves interruptions out."""

    def quiet(problem: Any) -> None:
        if not issubclass(problem.exc_type, KeyboardInterrupt):
            hook(problem)

    return quiet


def start() -> None:
    """Note that the command's main function runs."""
    _State.started = True


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Context for the import of a command's modules, in which the first signal ends the process at once."""
    before, _State.started = _State.started, False
    try:
        yield
    finally:
        _State.started = before


def finish() -> None:
    """Let a signal end the process silently from now on, because Python is about to exit."""
    if _State.installed:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def end() -> NoReturn:
    """End the process after a KeyboardInterrupt has unwound the command.

    Threads of libraries print errors when Python exits, or do not end by themselves: a command's are silent, and have a
    few seconds.
    """
    if not _State.installed:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    _tell()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    timer = threading.Timer(_END_SECONDS, os._exit, (INTERRUPTED,))
    timer.daemon = True
    timer.start()
    # Semaphores are released and temporary folders removed, but extension modules are not taken down: one that was
    # interrupted while it was imported crashes then.
    atexit._run_exitfuncs()
    os._exit(INTERRUPTED)


def seen() -> bool:
    """Return whether a command got the signal."""
    return _State.count > 0


def raised() -> bool:
    """Return whether the signal interrupted what the command did: errors after that are its consequences."""
    return _State.raised


@contextlib.contextmanager
def saving(save: Callable[[], None]) -> Iterator[None]:
    """Context in which the first Ctrl-C of a command calls `save` and does not raise a KeyboardInterrupt."""
    before, _State.save = _State.save, save
    try:
        yield
    finally:
        _State.save = before


@contextlib.contextmanager
def shielded() -> Iterator[None]:
    """Context whose child processes never get Ctrl-C, which a terminal sends to every process of a command."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
