"""Step times measured without blocking the loop, and the rates computed from them."""

import threading
from collections.abc import Iterator

import pytest

from jworld.training import clock, rates
from jworld.training.clock import StepClock, StepTime


class Result:
    """Output of a step that becomes ready at a given time of a clock that only the results advance."""

    now = 0.0

    def __init__(self, end: float, error: Exception | None = None) -> None:
        self.end, self.error = end, error

    def block_until_ready(self) -> None:
        Result.now = self.end
        if self.error:
            raise self.error


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[StepClock, list[int]]]:
    """Return a clock and the list of its calls of `on_end`."""
    monkeypatch.setattr(clock.time, "perf_counter", lambda: Result.now)
    beats: list[int] = []
    stepped = StepClock(lambda: beats.append(1))
    yield stepped, beats
    stepped.close()


def test_busy_time_leaves_out_the_queue_and_the_idle_time(steps: tuple[StepClock, list[int]]) -> None:
    stepped, beats = steps
    # Two steps are dispatched at once: the second one's time begins at the end of the first. The third is late.
    stepped.add(Result(10.1), dispatched=10.0)
    stepped.add(Result(10.3), dispatched=10.0)
    stepped.add(Result(10.8), dispatched=10.5)
    times = stepped.take()
    assert [time.busy for time in times] == pytest.approx([0.1, 0.2, 0.3])
    assert [time.idle for time in times] == pytest.approx([0, 0, 0.2])
    assert len(beats) == 3
    assert stepped.take() == []


def test_a_failed_step_neither_stops_the_clock_nor_counts(steps: tuple[StepClock, list[int]]) -> None:
    stepped, beats = steps
    stepped.add(Result(1.0, ValueError("no memory")), dispatched=0.0)
    stepped.add(Result(3.0), dispatched=2.5)
    assert [time.busy for time in stepped.take()] == [0.5]
    assert len(beats) == 1


def test_adding_a_step_does_not_wait_for_it() -> None:
    class Never(Result):
        def block_until_ready(self) -> None:
            assert released.wait(60)

    released, stepped = threading.Event(), StepClock()
    stepped.add(Never(0.0), dispatched=0.0)
    stepped.add(Never(0.0), dispatched=0.0)
    released.set()
    assert len(stepped.take()) == 2
    stepped.close()


def test_rates_of_an_interval() -> None:
    """Ten steps of 0.9 s, one of 2 s; one waited 0.5 s for data while the device was idle, the others hid the wait."""
    times = [StepTime(busy=0.9, idle=0.0)] * 9 + [StepTime(busy=0.9, idle=0.7), StepTime(busy=2.0, idle=0.0)]
    row = rates.of_interval(times, [0.5] * 11, 12.0, rates.Work(examples=4, tokens=100, flops=6e12, peak_flops=1e13))
    seconds = 12.0 / 11
    assert row["step_seconds"] == pytest.approx(seconds)
    assert row["step_seconds_p50"] == 0.9
    assert 1.0 < row["step_seconds_p95"] < 2.0
    assert row["examples_per_second"] == pytest.approx(4 / seconds)
    assert row["mfu"] == pytest.approx(6e12 / seconds / 1e13)
    assert row["data_wait"] == pytest.approx(0.5 / 12.0)


def test_unknown_rates_are_left_out() -> None:
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
