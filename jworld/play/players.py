"""Players: who plays, who waits, and whose turn is next on the one model."""

import collections
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar


class TakesTurns(Protocol):
    """Something that gets turns on the models."""

    #: Number of its last turn, see `Turns.next`.
    last_turn: int


class Member(Protocol):
    """A connected player."""

    #: Time at which the player got a seat, in seconds.
    seated: float


Player = TypeVar("Player", bound=Member)
Turn = TypeVar("Turn", bound=TakesTurns)


class Seats(Generic[Player]):
    """Seats of players, and the queue of those who wait for one, in the order of their arrival."""

    def __init__(self, count: int, *, turn_seconds: float) -> None:
        """Set up `count` seats; while others wait, a player keeps a seat for at most `turn_seconds`."""
        self.count, self._turn_seconds = count, turn_seconds
        self.playing: list[Player] = []
        self.queue: collections.deque[Player] = collections.deque()

    def join(self, player: Player, now: float) -> None:
        """Give a player a seat, or a place at the end of the queue."""
        self.queue.append(player)
        self._fill(now)

    def leave(self, player: Player, now: float) -> None:
        """Remove a player, who may wait or play."""
        if player in self.playing:
            self.playing.remove(player)
        elif player in self.queue:
            self.queue.remove(player)
        self._fill(now)

    def expire(self, now: float) -> list[Player]:
        """Send players whose time is over to the end of the queue while others wait, and return them.

        The one with the longest time goes first, and only as many as wait.
        """
        late = sorted((p for p in self.playing if now - p.seated >= self._turn_seconds), key=lambda p: p.seated)
        moved = late[: len(self.queue)]
        for player in moved:
            self.playing.remove(player)
            self.queue.append(player)
        if moved:
            self._fill(now)
        return moved

    def place(self, player: Player) -> int:
        """Return the place in the queue from 1, or 0 for a player who plays."""
        return 0 if player in self.playing else list(self.queue).index(player) + 1

    def _fill(self, now: float) -> None:
        while self.queue and len(self.playing) < self.count:
            player = self.queue.popleft()
            player.seated = now
            self.playing.append(player)


class Turns(Generic[Turn]):
    """Fair turns on the models: of all steps and answers that are due, the one whose last turn is longest ago."""

    def __init__(self) -> None:
        self._number = 0

    def next(self, due: Sequence[Turn]) -> Turn:
        """Return the next of at least one, and count the turn."""
        found = min(due, key=lambda each: each.last_turn)
        self._number += 1
        found.last_turn = self._number
        return found


class Bucket:
    """Limit on messages: a long-run rate and a burst."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate, self._burst, self._tokens, self._at = rate, burst, burst, now

    def take(self, now: float) -> bool:
        """Count a message, and return whether it is within the limit."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
