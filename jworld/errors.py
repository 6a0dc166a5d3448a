"""How a user's mistake is told: one sentence and exit code 2, never a traceback."""

import functools
import sys
from collections.abc import Callable
from typing import Any


class UserError(Exception):
    """A mistake that the user can mend: the message names the file or key, what was found, the expected and the fix."""


def exit_on_user_error(main: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a command's main function: a `UserError` becomes one line on stderr and exit code 2."""

    @functools.wraps(main)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return wrapped
