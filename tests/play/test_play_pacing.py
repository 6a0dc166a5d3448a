"""Times of frames, seats, turns and limits: no model, no clock."""

import dataclasses
import itertools

import pytest

from jworld.play import pacing, players


def shown(pacer: pacing.Pacer[int], times: list[float]) -> list[int | None]:
    return [pacer.take(time) for time in times]


def add(pacer: pacing.Pacer[int], frames: list[int], *, now: float) -> None:
    """Add all frames of a step at once."""
    pacer.begin(len(frames), now)
    pacer.add(frames, now)


def test_frames_come_evenly_and_one_step_after_the_other() -> None:
    pacer: pacing.Pacer[int] = pacing.Pacer(10)
    add(pacer, [0, 1, 2], now=5.0)
    add(pacer, [3, 4], now=5.1)
    assert pacer.wait(5.0) == 0
    times = [5.0, 5.05, 5.11, 5.21, 5.31, 5.41, 5.6]
    assert shown(pacer, times) == [0, None, 1, 2, 3, 4, None]
    assert pacer.dropped == 0
    assert pacer.wait(5.6) is None


def test_frames_that_come_in_parts_have_the_times_of_a_whole_step() -> None:
    """At the model's rate, and for a model that needs twice that time."""
    for period in (0.4, 0.9):
        whole, parts = pacing.Pacer[int](10), pacing.Pacer[int](10)
        for step in range(3):
            now = period * step
            add(whole, [0, 1, 2, 3], now=now)
            parts.begin(4, now)
            for number in range(4):
                parts.add([number], now + 0.05 * number)
            assert list(parts._frames) == [(pytest.approx(time), frame) for time, frame in whole._frames]
            while whole.take(now + period - 0.01) is not None or parts.take(now + period - 0.01) is not None:
                pass


def test_late_frames_are_dropped() -> None:
    pacer: pacing.Pacer[int] = pacing.Pacer(10)
    add(pacer, [0, 1, 2, 3], now=0.0)
    assert shown(pacer, [0.25, 0.26, 0.31]) == [2, None, 3]
    assert pacer.dropped == 2


def test_frames_of_two_steps_wait_at_most() -> None:
    pacer: pacing.Pacer[int] = pacing.Pacer(1)
    for start in range(0, 40, 4):
        add(pacer, [start, start + 1, start + 2, start + 3], now=0.0)
    assert pacer.waiting == 8
    assert pacer.dropped == 32


def test_without_pace_nothing_is_dropped_and_a_step_waits_for_the_one_before() -> None:
    pacer: pacing.Pacer[int] = pacing.Pacer(1)
    pacer.paced = False
    add(pacer, [0, 1, 2], now=0.0)
    assert pacer.due_in(0.0) == float("inf")
    assert shown(pacer, [9.0] * 4) == [0, 1, 2, None]
    assert pacer.due_in(9.0) == 0


def test_a_step_is_due_as_late_as_its_time_allows() -> None:
    pacer: pacing.Pacer[int] = pacing.Pacer(10)
    assert pacer.due_in(0.0) == 0
    pacer.measure(0.2)
    add(pacer, list(range(10)), now=0.0)
    assert pacer.due_in(0.0) == pytest.approx(1.0 - pacer.lead())
    assert 0.2 < pacer.lead() < 0.4
    pacer.measure(0.1)
    assert 0.1 < pacer.lead() < 0.3
    pacer.measure(0.5)
    assert pacer.lead() > 0.5


def test_steps_that_are_computed_count_as_frames_to_come() -> None:
    pacer: pacing.Pacer[int] = pacing.Pacer(10)
    pacer.measure(0.4)
    add(pacer, list(range(4)), now=0.0)
    # A step takes longer than it is shown: the one after next is due before the next one is there.
    assert pacer.due_in(0.0) == 0
    assert pacer.due_in(0.0, ahead=4) == pytest.approx(0.8 - pacer.lead())
    assert pacer.due_in(0.6, ahead=4) == 0


def test_a_slow_model_is_shown_evenly() -> None:
    pacer: pacing.Pacer[int] = pacing.Pacer(10)
    times = []
    for step in range(6):
        add(pacer, [0, 1, 2, 3], now=2.0 * step)
        times = [moment for moment, _ in pacer._frames]
        while pacer.take(2.0 * step + 1.99) is not None:
            pass
    gaps = [second - first for first, second in itertools.pairwise(times)]
    assert gaps == pytest.approx([0.5] * 3)


@dataclasses.dataclass(eq=False)
class Member:
    name: str
    last_turn: int = 0
    seated: float = 0.0


def test_turns_are_fair() -> None:
    turns: players.Turns[Member] = players.Turns()
    a, b, c = Member("a"), Member("b"), Member("c")
    order = "".join(turns.next([a, b, c]).name for _ in range(6))
    assert order == "abcabc"
    # A player that was not due for some time comes first, but only once.
    assert [turns.next([a, b]).name for _ in range(3)] == ["a", "b", "a"]
    assert [turns.next([a, b, c]).name for _ in range(4)] == ["c", "b", "a", "c"]


def test_seats_and_queue() -> None:
    seats: players.Seats[Member] = players.Seats(2, turn_seconds=10)
    members = [Member(name) for name in "abcd"]
    for member in members:
        seats.join(member, now=0.0)
    a, b, c, d = members
    assert [seats.place(member) for member in members] == [0, 0, 1, 2]
    seats.leave(c, now=1.0)
    assert seats.place(d) == 1
    seats.leave(a, now=2.0)
    assert (seats.playing, seats.place(d)) == ([b, d], 0)
    # Nobody waits, so nobody has to go.
    assert seats.expire(now=50.0) == []
    seats.join(a, now=50.0)
    # Both are late, but only one waits: the one who has played longest goes.
    assert seats.expire(now=50.0) == [b]
    assert (seats.playing, list(seats.queue), a.seated) == ([d, a], [b], 50.0)


def test_limit_of_messages() -> None:
    bucket = players.Bucket(2, 4, now=0.0)
    assert [bucket.take(0.0) for _ in range(5)] == [True] * 4 + [False]
    assert [bucket.take(1.0) for _ in range(3)] == [True, True, False]
