"""What a rollout or an evaluation hands over to be written, printed and drawn."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Action:
    """One step of a rollout: what the session is told, and its name for people."""

    control: Any
    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """Frames `start` to `stop` of a rollout, what was done in them, and how close they come to the truth (dB)."""

    start: int
    stop: int
    action: str
    psnr: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A predicted video beside the recorded one, if there is one, in chunks that cover all frames.

    prediction, truth: uint8 [T, H, W, 3].
    """

    title: str
    prediction: np.ndarray
    chunks: list[Chunk]
    truth: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers to held-out questions; each row has "question", "answer" and "truth"."""

    rows: list[dict[str, str]]


REVISITS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How much to evaluate.

    Attributes:
      windows: rollouts along recorded held-out walks, at most.
      chunks: chunks of each.
      revisits: scripted walks that turn away and back; None: `REVISITS`, where a system has such.
      seed: of the noise.
      benchmark, data, images, split, limit, batch: of systems that answer in words, which questions, from where, how
        many of them and how many at once; None is the system's choice.
    """

    windows: int = 24
    chunks: int = 4
    revisits: int | None = None
    seed: int = 0
    benchmark: str | None = None
    data: str | None = None
    images: str | None = None
    split: str | None = None
    limit: int | None = None
    batch: int | None = None

    def optional(self) -> dict[str, int | str | None]:
        """Return the options that only some systems use, None where the user left them out."""
        names = ("revisits", "benchmark", "data", "images", "split", "limit", "batch")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a system measured of a model.

    Attributes:
      numbers: everything, ready for JSON.
      curves: PSNR per chunk (dB) of the model and of what it is compared with.
      bars: further PSNRs (dB), of what `bars_title` says.
      summary: pairs of what was measured and its value in words.
      rollouts: some of the videos.
      scores, chance: of systems that answer in words, instead of curves, bars and rollouts: way of answering -> task ->
        accuracy, and that of guessing, in percent.
    """

    numbers: dict[str, Any]
    summary: list[tuple[str, str]]
    curves: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    bars: dict[str, float] = dataclasses.field(default_factory=dict)
    bars_title: str = ""
    rollouts: list[Comparison] = dataclasses.field(default_factory=list)
    scores: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    chance: float | None = None
