"""Protocols of a session: what generates a video step by step, or an answer token by token."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jworld.data.conversations import chat
from jworld.diffusion import step_reports
from jworld.parallel.programs import Program
from jworld.systems import asking
from jworld.utils import errors


class VideoSession(Protocol):
    """Step-by-step generation of a video in constant memory."""

    def reset(
        self, first_frame: np.ndarray | None, prompt: str, *, seed: int = 0, negative_prompt: str | None = None
    ) -> None:
        """Start a video from an image uint8 [H, W, 3], a video [T, H, W, 3], or None where `needs_image` is false.

        `negative_prompt` replaces that of the config; None keeps it.
        """

    def step(self, action: Any) -> np.ndarray:
        """Return the next frames, uint8 [T, H, W, 3]; `action` is the `control` of one `results.Action`."""


@runtime_checkable
class WatchedSession(Protocol):
    """A `VideoSession` that reports its denoising steps."""

    def watch(self, listener: step_reports.Listener | None) -> None:
        """Call `listener` after every denoising step of the next chunks; None calls nobody."""


@runtime_checkable
class CompiledSession(Protocol):
    """A `VideoSession` whose programs can be compiled for a model whose weights are not loaded yet."""

    def programs(self) -> Iterator[Program]:
        """Yield the network's programs of a rollout; the model's parameters may be descriptions with their sharding."""


@runtime_checkable
class PlannedSession(CompiledSession, Protocol):
    """A `CompiledSession` whose cost can be planned."""

    @property
    def new_frames(self) -> int:
        """Frames that a step returns, after the first step."""

    def decoding(self) -> Iterator[Program]:
        """Yield the autoencoder's programs of a step after the first."""


def as_video(first_frame: np.ndarray | None) -> np.ndarray:
    """Return what `VideoSession.reset` receives as a video [T, H, W, 3].

    Raises:
      UserError: it is None, but the model continues an image or a video.
    """
    if first_frame is None:
        raise errors.UserError(
            "first_frame is None, but the model continues an image: expected uint8 [H, W, 3], or a video [T, H, W, 3]"
        )
    return first_frame[None] if first_frame.ndim == 3 else first_frame


class TextSession(Protocol):
    """Token-by-token generation of an answer."""

    @property
    def sampling(self) -> asking.Sampling:
        """The settings with which the tokens of the current answer are drawn."""

    def reset(
        self,
        images: Sequence[np.ndarray],
        prompt: str | Sequence[chat.Turn],
        *,
        sampling: asking.Sampling | None = None,
    ) -> None:
        """Start an answer to a question, or to a conversation, about `images`, each uint8 [H, W, 3].

        `sampling` replaces that of the config; None keeps it.
        """

    def programs(
        self,
        images: Sequence[np.ndarray],
        prompt: str | Sequence[chat.Turn],
        *,
        sampling: asking.Sampling | None = None,
    ) -> Iterator[Program]:
        """Yield the programs of an answer to this question.

        The model's parameters may be descriptions with their sharding.
        """

    def step(self) -> int | None:
        """Return the next token, or None at the end of the answer."""

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens."""


class BatchAnswers(Protocol):
    """Answers to many questions."""

    def programs(self, questions: Sequence[asking.Question], *, batch: int) -> Iterator[Program]:
        """Yield the programs of `many`; the model's parameters may be descriptions with their sharding."""

    def many(self, questions: Sequence[asking.Question], *, batch: int) -> Iterator[tuple[int, asking.Answer]]:
        """Yield (number of the question, answer) in any order; a `ValueError` if a question or image is invalid."""
