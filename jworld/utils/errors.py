"""How a command tells that it could not do its work: one sentence and an exit code, never a traceback.

0   done
1   a defect of the program, with its traceback
2   the user's mistake: the same command would fail again
75  cut short (RESTART): the same command goes on where it was; schedulers restart on it
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

MISTAKE = 2
#: EX_TEMPFAIL of sysexits.h: stopped by a scheduler, left alone by another process, or hung.
RESTART = 75


class UserError(Exception):
    """A mistake that the user can mend: the message names the file or key, what was found, the expected and the fix."""


class RestartError(Exception):
    """The run was cut short by something outside it: the message says by what; the same command goes on."""


def one_line(error: BaseException, *, limit: int = 200) -> str:
    """The text of another library's error as part of a sentence, or its kind where it says nothing."""
    return " ".join(str(error).split())[:limit] or type(error).__name__


def exit_code(error: BaseException) -> int:
    """The exit code that tells of an error."""
    codes = {UserError: MISTAKE, RestartError: RESTART}
    return next((code for kind, code in codes.items() if isinstance(error, kind)), 1)


def exit_on_user_error(main: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command's main function: a `UserError` or `RestartError` becomes one line on stderr and its exit code."""

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except (UserError, RestartError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(exit_code(error))

    return wrapped
