"""One try of a command in this process: with a wrong path it must end with exit code 2 and one sentence."""

import contextlib
import dataclasses
import importlib
import io
import os
import pathlib
import resource
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType

from jworld.data.records import shards
from mistakes import wrong

SECONDS = 8
#: Address space that a try may add to that of the process, in bytes.
MEMORY = 3 << 30
_SENTENCE = 1600


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Outcome of one try: its problem ("" if it passed), what was printed, and its seconds of the processor."""

    problem: str
    printed: str
    seconds: float


class Hangs(BaseException):
    """A try that took longer than `SECONDS`."""


def _files(folder: pathlib.Path) -> set[str]:
    found: set[str] = set()
    for root, folders, names in os.walk(folder):
        # What an interrupted precompute resumes from is meant to stay.
        if shards.PROGRESS in folders:
            folders.clear()
        else:
            found |= {os.path.join(root, name) for name in names}
    return found


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Bound time and memory, so that a file without an end is a failed try and not the end of the machine."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hangs

    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    old, hard = resource.getrlimit(resource.RLIMIT_AS)
    handlers = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    # Time of the processor, which does not depend on the machine's load, and a longer one for a try that waits.
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(15 * SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (old, hard))
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run(module: str, arguments: Sequence[str], folder: pathlib.Path) -> Outcome:
    """Run the main function of a module in `folder`, whose files must not change."""
    before, began = _files(folder), time.process_time()
    main = importlib.import_module(module).main
    out, err = io.StringIO(), io.StringIO()
    ended: BaseException | None = None
    # Not capture of file descriptors: what libraries in C print is not a part of the sentence.
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(folder):
        try:
            with _limits():
                main(list(arguments))
        except BaseException as error:
            ended = error
    seconds = time.process_time() - began
    new = sorted(_files(folder) - before)
    problem = _judge(ended, err.getvalue(), new)
    trace = "" if ended is None else "".join(traceback.format_exception(ended)[-6:])
    return Outcome(problem, f"{out.getvalue()[-500:]}{err.getvalue()[-1500:]}{trace if problem else ''}", seconds)


def _judge(ended: BaseException | None, errors: str, new: Sequence[str]) -> str:
    if ended is None:
        return "accepted"
    if isinstance(ended, Hangs):
        return "hangs"
    if not isinstance(ended, SystemExit):
        return f"traceback: {type(ended).__name__}"
    if ended.code != 2:
        return f"exit code {ended.code}"
    lines = [line for line in errors.splitlines() if line.strip()]
    # `splitlines` also splits at control characters, which must not reach a terminal.
    if len(lines) != 1 or not lines[0].startswith("error: ") or "\x1b" in errors:
        return f"{len(lines)} lines"
    if "Traceback" in errors or "object at 0x" in errors:
        return "insides of the program in the sentence"
    if len(errors) > _SENTENCE:
        return f"{len(errors)} characters"
    if wrong.MARK not in errors:
        return "the path is not named"
    if new:
        return f"left {len(new)} files"
    return ""
