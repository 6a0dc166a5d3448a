"""Errors and exit codes of commands: one message instead of a traceback.

0   done
1   a defect of the program, with its traceback
2   a user error: the same command would fail again
75  stopped (RESTART): the same command resumes; schedulers restart on it
130 interrupted by Ctrl-C (interrupts.INTERRUPTED)
141 unread (UNREAD): the reader of a pipe closed it
"""

import errno
import functools
import os
import select
import sys
from collections.abc import Callable
from typing import Any

from jworld.utils import interrupts

MISTAKE = 2
#: EX_TEMPFAIL of sysexits.h: stopped by a scheduler, after the loss of another process, or after a hang.
RESTART = 75
#: 128 + SIGPIPE: the reader of the output is gone, as after `... --help | head`.
UNREAD = 141
#: Errors of the system that mean a full disk, or a limit of what this user may write.
DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class UserError(Exception):
    """Error that the user can fix.

    The message names the file or key, the value found, the value expected, and the fix.
    """


class RestartError(Exception):
    """Interruption from outside the run: the message names the cause; the same command resumes."""


def one_line(error: BaseException, *, limit: int = 200) -> str:
    """Return the text of another library's error on one line, or its type if the text is empty."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def printable(text: str) -> str:
    """Return a text as one line: control characters, as names of files may have, become their escapes."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def exit_code(error: BaseException) -> int:
    """Return the exit code of an error."""
    codes = {UserError: MISTAKE, RestartError: RESTART}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), 1)


def exit_on_user_error(main: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command's main function: a `UserError` or `RestartError` becomes one line on stderr and its exit code.

    The same holds for an `OSError` that names a path, and for a full disk. A command whose output is a pipe that its
    reader has closed ends silently with `UNREAD`, and one that Ctrl-C interrupts with one line and
    `interrupts.INTERRUPTED`.
    """

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        interrupts.start()
        try:
            try:
                _check_current_folder()
                return main(*args, **kwargs)
            except Exception:
                # An extension module raises an ImportError if it is interrupted while it is imported.
                if interrupts.raised():
                    raise KeyboardInterrupt from None
                raise
            finally:
                # Buffered text, such as help, would otherwise fail at interpreter exit.
                if sys.stdout is not None:
                    sys.stdout.flush()
        except KeyboardInterrupt:
            interrupts.end()
        except (UserError, RestartError) as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            sys.exit(exit_code(error))
        except BrokenPipeError:
            if not _output_unread():
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(UNREAD)
        except OSError as error:
            # What the system refuses for a path is not a defect of the program, wherever it is found.
            sentence = _system_sentence(error)
            if not sentence:
                raise
            print(f"error: {printable(sentence)}", file=sys.stderr)
            sys.exit(MISTAKE)
        finally:
            interrupts.finish()

    return wrapped


def _check_current_folder() -> None:
    """Raise a `UserError` if the current folder was deleted: a library in C++ would end the process."""
    try:
        os.getcwd()
    except OSError as error:
        raise UserError(f"the current folder cannot be used ({error.strerror}): change to another one") from error


def _system_sentence(error: OSError) -> str:
    """Return the sentence about a full disk, or about the path that the system refuses; "" for other errors."""
    path = "" if error.filename is None else os.fsdecode(error.filename)
    reason = error.strerror or type(error).__name__
    if error.errno in DISK_FULL:
        return f"{path or 'a file'} could not be written ({reason}): free space, or choose another place"
    return f"{path} cannot be used ({reason}): correct the path" if path else ""


def _output_unread() -> bool:
    """Return whether standard output is a pipe without a reader."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
