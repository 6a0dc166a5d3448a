"""Profiler traces of selected steps."""

import pathlib
import subprocess
import sys

import commands
import pytest

from jworld.training import profiling
from jworld.utils import errors


def test_steps_are_named_as_first_and_last() -> None:
    assert profiling.parse_steps("10:15") == range(10, 16)
    assert not profiling.parse_steps("")
    for text in ("10", "0:3", "5:4", "a:b", "1:2:3"):
        with pytest.raises(errors.UserError, match="expected first:last"):
            profiling.parse_steps(text)


TRACE = """
import pathlib, sys
import jax, jax.numpy as jnp
from jworld.training import profiling

folder = pathlib.Path(sys.argv[1])
profile = profiling.Profile(folder, range(2, 4), start_step=0, last_step=9)
step = jax.jit(lambda x: x + 1)
x, messages = jnp.zeros(()), []
for number in range(1, 6):
    profile.before(number, x)
    assert profile._running == (number in (2, 3))
    x = step(x)
    messages.append(profile.after(number, x))
assert messages[:2] == messages[3:] == ["", ""]
assert f"profile of steps 2 to 3 is in {folder / 'profile'}" in messages[2]
"""


def test_a_trace_of_some_steps(tmp_path: pathlib.Path) -> None:
    """Run in a subprocess: the profiler crashes in a process that has loaded the TPU compiler, as other tests do."""
    result = subprocess.run(
        [sys.executable, "-c", TRACE, str(tmp_path)], cwd=commands.ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_steps_outside_of_this_launch_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.UserError, match="--profile is 2:4, but this launch makes the steps 11 to 20"):
        profiling.Profile(tmp_path, range(2, 5), start_step=10, last_step=20)
    profiling.Profile(tmp_path, range(2, 12), start_step=10, last_step=20).close()
