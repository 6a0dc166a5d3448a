"""Results of rollouts and evaluations, to be written, printed and drawn."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jworld.evaluation import answer_pages


@dataclasses.dataclass(frozen=True, kw_only=True)
class Action:
    """One step of a rollout.

    Attributes:
      control: what the session receives.
      name: its name for the user.
      prompt: caption from this step on, if it changes; else None.
    """

    control: Any
    name: str
    prompt: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chunk:
    """Frames `start` to `stop` of a rollout, with their action and PSNR in dB."""

    start: int
    stop: int
    action: str
    psnr: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """A predicted video and the recorded one, if there is one, in chunks that cover all frames.

    Attributes:
      title: text above the video.
      prediction: uint8 [T, H, W, 3].
      chunks: parts of the video.
      truth: uint8 [T, H, W, 3] or None.
    """

    title: str
    prediction: np.ndarray
    chunks: list[Chunk]
    truth: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A caption or question of the user, with an image uint8 [H, W, 3], or None for that of the held-out data."""

    text: str
    image: np.ndarray | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """Answers to questions.

    Attributes:
      rows: each has "question" and "answer", and "truth" for held-out questions.
      images: of each row, uint8 [H, W, 3]; empty if they are not shown.
    """

    rows: list[dict[str, str]]
    images: list[list[np.ndarray]] = dataclasses.field(default_factory=list)


REVISITS = 8
ANGLES = (90,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of an evaluation; None leaves a value to the system.

    Attributes:
      windows: rollouts along recorded held-out episodes, at most.
      chunks: chunks per rollout.
      revisits: scripted episodes of each kind, which turn away and back, or stand still; None for `REVISITS`, if the
        system has them.
      angles: degrees of these turns; None for `ANGLES`.
      motion: file of the meter of motion; None for the shipped one of the source of the recordings.
      seed: random seed for the noise.
      benchmark: questions for systems that answer in text.
      data: file or folder of the questions.
      images: folder of their images.
      split: split of the questions.
      limit: number of questions, at most.
      batch: questions per batch.
      scoring: how answers are read.
      keep: receives what was measured of every clip or question, as JSON, when it is measured.
    """

    windows: int = 24
    chunks: int = 4
    revisits: int | None = None
    angles: tuple[int, ...] | None = None
    motion: str | None = None
    seed: int = 0
    benchmark: str | None = None
    data: str | None = None
    images: str | None = None
    split: str | None = None
    limit: int | None = None
    batch: int | None = None
    scoring: str | None = None
    keep: Callable[[Mapping[str, Any]], object] = lambda row: None

    def flags(self) -> dict[str, Any]:
        """Return the values of all options of the command line."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "keep"}

    def optional(self) -> dict[str, int | str | tuple[int, ...] | None]:
        """Return the options that only some systems use; None if not set."""
        names = ("revisits", "angles", "motion", "benchmark", "data", "images", "split", "limit", "batch", "scoring")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """Measurements of a model by its system.

    Attributes:
      numbers: all values, as JSON.
      summary: (name, value) pairs for the user.
      curves: PSNR per chunk in dB, of the model and its baselines.
      images: measures of images per chunk: measure of `measures.IMAGES` -> values of the model and its baselines.
      bars: further PSNRs in dB, by name.
      bars_title: title of `bars`.
      rollouts: some of the videos.
      scores: accuracy in percent of systems that answer in text: way of answering -> task -> accuracy.
      chance: accuracy of guessing, in percent.
      entries: some of the answers next to their references and images.
    """

    numbers: dict[str, Any]
    summary: list[tuple[str, str]]
    curves: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    images: dict[str, dict[str, list[float]]] = dataclasses.field(default_factory=dict)
    bars: dict[str, float] = dataclasses.field(default_factory=dict)
    bars_title: str = ""
    rollouts: list[Comparison] = dataclasses.field(default_factory=list)
    scores: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    chance: float | None = None
    entries: list[answer_pages.Entry] = dataclasses.field(default_factory=list)
