"""XProf traces of a few training steps."""

import pathlib
import re
from typing import Any

import jax

from jworld.utils import errors

FOLDER = "profile"


def parse_steps(text: str) -> range:
    """Parse "10:15" to steps 10 to 15, both included; "" to none."""
    if not text:
        return range(0)
    found = re.fullmatch(r"(\d+):(\d+)", text)
    first, last = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= first <= last:
        raise errors.UserError(
            f"--profile is {text!r}, expected first:last, both included and counted from 1, such as 10:15"
        )
    return range(first, last + 1)


class Profile:
    """Trace of `steps` in `<workdir>/profile`; the loop waits for the device once before them and once after."""

    def __init__(self, workdir: pathlib.Path, steps: range, *, start_step: int, last_step: int) -> None:
        """Prepare the trace of a launch of steps `start_step + 1` to `last_step`.

        Raises:
          UserError: the launch contains none of `steps`.
        """
        self._folder = workdir / FOLDER
        self._steps = range(max(steps.start, start_step + 1), min(steps.stop, last_step + 1))
        if steps and not self._steps:
            raise errors.UserError(
                f"--profile is {steps[0]}:{steps[-1]}, but this launch makes the steps {start_step + 1} to "
                f"{last_step}: choose from these"
            )
        self._running = False

    def before(self, step: int, last: Any) -> None:
        """Start the trace before the first of the steps, once `last`, the previous step's output, is ready."""
        if self._steps and step == self._steps[0]:
            jax.block_until_ready(last)
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, made: Any) -> str:
        """Stop the trace after the last of the steps; return a message for the user, or ""."""
        if not self._running or step != self._steps[-1]:
            return ""
        jax.block_until_ready(made)
        self.close()
        return (
            f"profile of steps {self._steps[0]} to {self._steps[-1]} is in {self._folder}; to look at it: pip install "
            f"xprof, then xprof --logdir {self._folder}"
        )

    def close(self) -> None:
        """Stop a running trace, keeping the steps traced so far."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
