"""Step times that nobody waits for, and what a line makes of them."""

import threading
import time

import jax.numpy as jnp
import pytest

from jworld.training import rates
from jworld.training.clock import StepClock, StepTime


class Later:
    """A result that is ready when the test says so."""

    def __init__(self, error: Exception | None = None) -> None:
        self.ready, self.error = threading.Event(), error

    def block_until_ready(self) -> None:
        assert self.ready.wait(10)
        if self.error:
            raise self.error


def test_busy_time_leaves_out_the_queue_and_the_idle_time() -> None:
    beats: list[int] = []
    clock = StepClock(lambda: beats.append(1))
    first, second, third = Later(), Later(), Later()
    began = time.perf_counter()
    # Two steps dispatched at once: the second one's time begins with the end of the first.
    clock.add(first, dispatched=began)
    clock.add(second, dispatched=began)
    time.sleep(0.1)
    first.ready.set()
    time.sleep(0.2)
    second.ready.set()
    time.sleep(0.15)  # the device has nothing to do
    clock.add(third, dispatched=time.perf_counter())
    time.sleep(0.05)
    third.ready.set()
    times = clock.take()
    assert clock.take() == []
    clock.close()
    assert [time.busy for time in times] == pytest.approx([0.1, 0.2, 0.05], abs=0.04)
    assert [time.idle for time in times] == pytest.approx([0, 0, 0.15], abs=0.04)
    assert len(beats) == 3


def test_a_failed_step_neither_stops_the_clock_nor_counts() -> None:
    clock = StepClock()
    failed = Later(ValueError("no memory"))
    failed.ready.set()
    clock.add(failed, dispatched=time.perf_counter())
    clock.add(jnp.zeros(()), dispatched=time.perf_counter())
    assert len(clock.take()) == 1
    clock.close()


def test_rates_of_an_interval() -> None:
    """Ten steps of 0.9 s, one of 2 s; one waited 0.5 s for data while the device was idle, the others hid it."""
    times = [StepTime(busy=0.9, idle=0.0)] * 9 + [StepTime(busy=0.9, idle=0.7), StepTime(busy=2.0, idle=0.0)]
    row = rates.of_interval(times, [0.5] * 11, 12.0, rates.Work(examples=4, tokens=100, flops=6e12, peak_flops=1e13))
    seconds = 12.0 / 11
    assert row["step_seconds"] == pytest.approx(seconds)
    assert row["step_seconds_p50"] == 0.9
    assert 1.0 < row["step_seconds_p95"] < 2.0
    assert row["examples_per_second"] == pytest.approx(4 / seconds)
    assert row["mfu"] == pytest.approx(6e12 / seconds / 1e13)
    assert row["data_wait"] == pytest.approx(0.5 / 12.0)


def test_what_is_not_known_is_left_out() -> None:
    assert set(rates.Work(examples=4).rates(0.5)) == {"examples_per_second"}
    assert "mfu" not in rates.Work(examples=4, flops=1e9).rates(0.5)
    assert rates.of_interval([], [], 1.0, rates.Work(examples=4)) == {}


def test_device_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class Device:
        def __init__(self, stats: dict[str, int] | None) -> None:
            self.memory_stats = lambda: stats

    def found(*stats: dict[str, int] | None) -> rates.Rates:
        monkeypatch.setattr(rates.jax, "local_devices", lambda: [Device(one) for one in stats])
        return rates.device_memory()

    assert found(None, None) == {}
    assert found({"bytes_in_use": 5, "peak_bytes_in_use": 7}, {"bytes_in_use": 6, "peak_bytes_in_use": 6}) == {
        "memory_bytes": 6,
        "memory_peak_bytes": 7,
    }
