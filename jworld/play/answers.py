"""Answers to questions about frames, by a second model. All of this runs on the thread of the models."""

import dataclasses
import time
from collections.abc import Callable

import jax
import numpy as np

from jworld.systems import asking, generation, runs
from jworld.systems.sessions import TextSession
from jworld.utils import limits

#: Question that compiles the programs of an answer.
_WARM = "What is in this image?"


class Answer:
    """An answer that is decoded in slices of time.

    Attributes:
      done: nothing follows.
      tokens: number of its tokens so far.
    """

    def __init__(
        self,
        session: TextSession,
        question: str,
        image: np.ndarray,
        *,
        sampling: asking.Sampling,
        mesh: jax.sharding.Mesh,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Note a question about an image uint8 [H, W, 3]; nothing is computed yet."""
        self._session, self._question, self._image = session, question, image
        self._sampling, self._mesh, self._clock = sampling, mesh, clock
        self._stream: asking.TextStream | None = None
        self.done, self.tokens = False, 0

    def advance(self, seconds: float) -> str:
        """Decode tokens for about this time, but at least one, and return their text; the first call also reads.

        Raises:
          UserError: the question is not valid for the model.
        """
        until, found = self._clock() + seconds, list[str]()
        with jax.set_mesh(self._mesh):
            if self._stream is None:
                self._session.reset([self._image], self._question, sampling=self._sampling)
                self._stream = asking.TextStream(self._session.decode, self._sampling)
            while not self.done:
                token = self._session.step()
                if token is None:
                    self.done = True
                    found.append(self._stream.end())
                else:
                    self.tokens += 1
                    found.append(self._stream.add(token))
                if self._clock() >= until:
                    break
        return "".join(found)


class Answerer:
    """A model that answers questions about frames."""

    def __init__(self, run: runs.Run) -> None:
        """Set up answers of an opened run; a `UserError` if its model does not answer in text."""
        self._run = run
        self._system = generation.text_system(run.system, run.config)
        chosen = self._system.sampling()
        self.sampling = dataclasses.replace(chosen, max_tokens=min(chosen.max_tokens, limits.PLAY_ANSWER))

    def ask(self, question: str, image: np.ndarray) -> Answer:
        """Return the answer to a question about an image uint8 [H, W, 3] of any size, of which nothing is decoded."""
        session = self._system.session(self._run.model, self._run.encoders)
        return Answer(session, question, image, sampling=self.sampling, mesh=self._run.mesh)

    def warm(self, image: np.ndarray) -> None:
        """Compile the programs of an answer to a short question about an image of this size."""
        self.ask(_WARM, image).advance(0.0)
