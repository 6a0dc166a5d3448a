"""SIGTERM becomes a flag inside the context and ends the process again outside of it."""

import os
import signal

from jworld.training import preemption


def test_sigterm_sets_the_flag() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with preemption.Preemption() as stop:
        assert not stop.reached(1)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reached(1)
    assert signal.getsignal(signal.SIGTERM) is before
