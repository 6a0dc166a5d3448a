"""Questions of players about the frame that they see, and their turns on the thread of the models."""

import asyncio
import concurrent.futures
import sys
import traceback
from collections.abc import Iterable, Mapping
from typing import Any

from jworld.play import answers, protocol
from jworld.play.connection import Player
from jworld.utils import errors

#: Longest time in which tokens are decoded while a step may be due, in seconds.
_SLICE = 0.05


class Asking:
    """The latest question of a player. Its answer has turns as a player has, so that a flood of questions gets no more.

    Attributes:
      last_turn: number of its last turn, see `players.Turns`.
      answer: the answer that is decoded; None without one.
    """

    def __init__(self, player: Player) -> None:
        self.player, self.last_turn = player, 0
        self.answer: answers.Answer | None = None
        self._number = -1

    @property
    def is_due(self) -> bool:
        """True if tokens of an answer can be decoded."""
        return self.answer is not None and self.player.socket is not None and self.player.game is not None

    def begin(self, answer: answers.Answer, frame: int) -> None:
        """Replace the answer."""
        self.stop()
        self.answer = answer
        self._number += 1
        self.player.send("asked", question=self._number, frame=frame)

    def stop(self) -> None:
        """Forget the answer, if there is one, and report its end."""
        if self.answer is not None:
            self._send("", stopped=True)
            self.answer = None

    async def turn(self, thread: concurrent.futures.Executor, seconds: float) -> None:
        """Decode tokens of the answer for this time, at most a short one, and send their text."""
        answer = self.answer
        assert answer is not None
        try:
            text = await asyncio.get_running_loop().run_in_executor(thread, answer.advance, min(seconds, _SLICE))
        except Exception as error:
            if not isinstance(error, errors.UserError):
                traceback.print_exception(error, file=sys.stderr)
            self.player.send("error", text=f"the question cannot be answered: {errors.one_line(error)}")
            if self.answer is answer:
                self.stop()
            return
        # Another question, or none, may have taken its place meanwhile.
        if self.answer is answer:
            if text or answer.done:
                self._send(text)
            if answer.done:
                self.answer = None

    def _send(self, text: str, *, stopped: bool = False) -> None:
        assert self.answer is not None
        done = stopped or self.answer.done
        self.player.send(
            "answer", question=self._number, text=text, done=done, stopped=stopped, tokens=self.answer.tokens
        )


class Questions:
    """Questions of all players, which one model answers."""

    def __init__(self, answerer: answers.Answerer | None) -> None:
        """Set up; None refuses all questions."""
        self._answerer = answerer
        self._asking: dict[str, Asking] = {}

    @property
    def are_answered(self) -> bool:
        """True if there is a model that answers."""
        return self._answerer is not None

    def receive(self, player: Player, values: Mapping[str, Any]) -> None:
        """Take a question about a frame that the player has; without text, only end the answer.

        Raises:
          MessageError: it cannot be answered.
        """
        if self._answerer is None:
            raise protocol.MessageError("ask: this server answers no questions: start it with --ask")
        asking = self._asking.setdefault(player.id, Asking(player))
        text = values["text"].strip()
        if not text:
            asking.stop()
            return
        number = values.get("frame", player.shown)
        image = player.image(number)
        if image is None:
            raise protocol.MessageError(f"ask: frame {number} is not one of the latest frames: ask about a newer one")
        asking.begin(self._answerer.ask(text, image), number)

    def due(self, playing: Iterable[Player]) -> list[Asking]:
        """Return the answers of these players that can be continued."""
        return [asking for player in playing if (asking := self._asking.get(player.id)) and asking.is_due]

    def end(self, player: Player) -> None:
        """End the answer of a player who lost its connection or its seat."""
        if asking := self._asking.get(player.id):
            asking.stop()

    def forget(self, player: Player) -> None:
        """Remove a player that has gone."""
        self._asking.pop(player.id, None)
