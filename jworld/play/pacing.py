"""Times at which the frames of a player are sent: evenly at the model's rate, and never late.

Frames of a step are spread over the time of the step. The next step is computed while they are shown, as late as the
time until its first frames allows: a key then waits as little as possible.
"""

import collections
from collections.abc import Sequence
from typing import Generic, TypeVar

Frame = TypeVar("Frame")

#: Steps whose frames may wait, at most.
_WAITING = 2
#: Share of a new measurement in a running mean.
_SHARE = 0.25
#: Time in seconds and factor by which a step is started earlier than its expected time.
_MARGIN, _FACTOR = 0.02, 1.25


class Pacer(Generic[Frame]):
    """Queue of the frames of one player, bounded by two steps.

    All times are seconds of one clock, which the caller passes as `now`.
    """

    def __init__(self, fps: float) -> None:
        self.fps = fps
        #: False sends frames at once, and never drops one: for programs that wait for every step.
        self.paced = True
        self.dropped = 0
        self.clear()

    def clear(self) -> None:
        """Forget all frames and measurements, for a new start."""
        self._frames: collections.deque[tuple[float, Frame]] = collections.deque()
        self._counts: collections.deque[int] = collections.deque(maxlen=_WAITING)
        self._end = 0.0
        self._period = 0.0
        self._spacing = 0.0
        self._lead = 0.0
        self._begun: float | None = None

    @property
    def waiting(self) -> int:
        """Number of frames that wait."""
        return len(self._frames)

    def lead(self) -> float:
        """Return how long before the end of the shown frames the next step is started, in seconds."""
        return _FACTOR * self._lead + _MARGIN

    def measure(self, seconds: float) -> None:
        """Note how long before the end of the shown frames a step had to be started for none of its own to be late."""
        # Slower steps count at once, so that the next one is not late; faster ones gradually.
        self._lead = max(seconds, self._lead + _SHARE * (seconds - self._lead))

    def begin(self, count: int, now: float) -> None:
        """Note that the first of `count` frames of a step are there."""
        if self._begun is not None and self.paced:
            gap = now - self._begun
            self._period = gap if not self._period else self._period + _SHARE * (gap - self._period)
        self._begun = now
        # A model that is slower than its rate is shown evenly, too.
        late = now > self._end and bool(self._period)
        self._spacing = max(1 / self.fps, self._period / count if late else 0.0) if self.paced else 0.0
        self._counts.append(count)

    def add(self, frames: Sequence[Frame], now: float) -> None:
        """Append frames of the step that has begun; the oldest are dropped if those of more than two steps wait."""
        start = max(now, self._end)
        self._frames.extend((start + i * self._spacing, frame) for i, frame in enumerate(frames))
        self._end = start + len(frames) * self._spacing
        while self.paced and len(self._frames) > sum(self._counts):
            self._frames.popleft()
            self.dropped += 1

    def take(self, now: float) -> Frame | None:
        """Return the newest frame whose time has come, or None; older ones are dropped."""
        found: Frame | None = None
        while self._frames and self._frames[0][0] <= now:
            if found is not None:
                self.dropped += 1
            _, found = self._frames.popleft()
            if not self.paced:
                break
        return found

    def wait(self, now: float) -> float | None:
        """Return the seconds until the next frame; None without one."""
        return max(self._frames[0][0] - now, 0.0) if self._frames else None

    def due_in(self, now: float, ahead: int = 0) -> float:
        """Return the seconds until the next step must be started; 0 if it is due.

        `ahead` is the number of frames of steps that are still computed.
        """
        if not self.paced:
            return float("inf") if self._frames else 0.0
        end = max(self._end, now) + ahead / self.fps if ahead else self._end
        return max(end - self.lead() - now, 0.0)
