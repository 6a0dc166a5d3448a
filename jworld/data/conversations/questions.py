"""Generated questions about recorded episodes, with answers that follow from the camera poses.

| kind | question about two views of an episode | answers |
| --- | --- | --- |
| turn | did the camera turn left or right from the first to the second? | left, right |
| distance | is the wall ahead nearer or farther in the second? | nearer, farther |
| side | which view looks further to the left? | first, second |

The two views are side by side in one image. For `turn` and `side` their positions are almost equal and their fields of
view overlap. For `distance`, one position is on the line of sight from the other, so both show the same wall ahead at
different distances. Both answers of a kind are equally frequent.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated

import numpy as np
import rich.console
import rich.progress

from jworld.data import images
from jworld.data.conversations import chat, formats
from jworld.data.recording import episodes
from jworld.utils import ranges
from jworld.utils.errors import UserError

ANSWERS: Mapping[str, tuple[str, str]] = {
    "turn": ("left", "right"),
    "distance": ("nearer", "farther"),
    "side": ("first", "second"),
}

PHRASES: Mapping[str, tuple[str, ...]] = {
    "turn": (
        "The camera saw the first view, then the second. Did it turn left or right?",
        "Between these two views, did the camera turn left or right?",
    ),
    "distance": (
        "Is the wall ahead nearer or farther in the second view than in the first?",
        "After walking from the first view to the second, is the wall ahead nearer or farther?",
    ),
    "side": (
        "Which of the two views looks further to the left, the first or the second?",
        "Is it the first or the second view that looks further to the left?",
    ),
}

#: Turn between two views that overlap but are not too similar, in degrees of yaw.
_TURN = (12.0, 60.0)
#: Distance between the cameras, in world units: the maximum for turns, and the range for `distance`.
_SAME_PLACE, _WALKED = 0.4, (0.25, 3.0)
#: Maximum turn (degrees) and maximum sideways motion (share of the distance) of a straight move.
_STRAIGHT, _ASIDE = 0.2, 0.01
#: Frames between two views, at most.
_SPAN = 48
_SEAM = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionsConfig:
    """Settings of generated questions (`config.data.questions`).

    Attributes:
      per_answer: questions per kind, answer and episode, at most.
      view_size: (width, height) of each of the two views, in pixels.
      seed: random seed for the choice of views and phrases.
    """

    per_answer: Annotated[int, ranges.Range(1, 100_000)] = 12
    view_size: tuple[Annotated[int, ranges.Range(8, 16384)], Annotated[int, ranges.Range(8, 16384)]] = (64, 48)
    seed: ranges.Seed = 0

    def __post_init__(self) -> None:
        ranges.check(self)


@dataclasses.dataclass(frozen=True)
class Question:
    """One question about frames `first` and `second` of an episode, with its kind and correct answer."""

    first: int
    second: int
    kind: str
    answer: str


def headings(w2c: np.ndarray) -> np.ndarray:
    """Return the yaw [T] of cameras w2c [T, 4, 4], in degrees, positive to the right."""
    yaw: np.ndarray = np.degrees(np.arctan2(w2c[:, 2, 0], w2c[:, 2, 2]))
    return yaw


def turned(first: float | np.ndarray, second: float | np.ndarray) -> np.ndarray:
    """Return the turn from one heading to another, in degrees, positive to the right, at most 180."""
    return (np.asarray(second) - first + 180.0) % 360.0 - 180.0


def find(w2c: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    """Find all pairs of frames of an episode with an unambiguous answer: (kind, answer) -> int [N, 2]."""
    yaw = headings(w2c)
    centers = -np.einsum("tij,ti->tj", w2c[:, :3, :3], w2c[:, :3, 3])
    first, second = np.nonzero(np.triu(np.ones((len(w2c), len(w2c)), bool), 1))
    near = second - first <= _SPAN
    first, second = first[near], second[near]
    angle = turned(yaw[first], yaw[second])
    # Displacement in the coordinates of the first camera: x to the right, z ahead.
    way = np.einsum("nij,nj->ni", w2c[first, :3, :3], centers[second] - centers[first])
    distance = np.linalg.norm(way, axis=-1)
    turns = (distance <= _SAME_PLACE) & (np.abs(angle) >= _TURN[0]) & (np.abs(angle) <= _TURN[1])
    ahead = way[:, 2]
    straight = (np.abs(angle) <= _STRAIGHT) & (np.hypot(way[:, 0], way[:, 1]) <= _ASIDE * np.abs(ahead))
    moves = straight & (np.abs(ahead) >= _WALKED[0]) & (np.abs(ahead) <= _WALKED[1])
    pairs = np.stack([first, second], axis=1)
    return {
        ("turn", "left"): pairs[turns & (angle < 0)],
        ("turn", "right"): pairs[turns & (angle > 0)],
        # In both orders: these questions are about the views, not about the motion between them.
        ("distance", "nearer"): np.concatenate([pairs[moves & (ahead > 0)], pairs[moves & (ahead < 0)][:, ::-1]]),
        ("distance", "farther"): np.concatenate([pairs[moves & (ahead < 0)], pairs[moves & (ahead > 0)][:, ::-1]]),
        ("side", "first"): np.concatenate([pairs[turns & (angle > 0)], pairs[turns & (angle < 0)][:, ::-1]]),
        ("side", "second"): np.concatenate([pairs[turns & (angle < 0)], pairs[turns & (angle > 0)][:, ::-1]]),
    }


def choose(w2c: np.ndarray, *, per_answer: int, rng: np.random.Generator) -> list[Question]:
    """Draw questions about an episode, equally many for both answers of a kind."""
    found = find(w2c)
    chosen = []
    for kind, pair in ANSWERS.items():
        count = min(per_answer, *(len(found[kind, answer]) for answer in pair))
        for answer in pair:
            candidates = found[kind, answer]
            for number in rng.choice(len(candidates), count, replace=False):
                chosen.append(Question(int(candidates[number, 0]), int(candidates[number, 1]), kind, answer))
    return chosen


def side_by_side(first: np.ndarray, second: np.ndarray, *, size: tuple[int, int]) -> np.ndarray:
    """Place two frames uint8 [H, W, 3] side by side in one image, with a dark seam between them."""
    width, height = size
    left, right = (images.resize(frame, width=width, height=height) for frame in (first, second))
    return np.concatenate([left, np.zeros((height, _SEAM, 3), np.uint8), right], axis=1)


def make(
    output: pathlib.Path, directory: pathlib.Path, config: QuestionsConfig, *, console: rich.console.Console
) -> Iterator[formats.Conversation]:
    """Yield questions about the episodes in `directory`; their images are written to views-SPLIT.npy in `output`.

    Raises:
      UserError: the episodes are absent, or too short for any question.
    """
    entries = episodes.read_manifest(directory)["episodes"]
    for split in sorted({entry["split"] for entry in entries}):
        own = [entry["name"] for entry in entries if entry["split"] == split]
        tracked = rich.progress.track(own, f"making questions about the {split} episodes", console=console)
        views, rows = _ask(directory, tracked, split, config)
        if not rows:
            raise UserError(
                f"{directory}: the {len(own)} episodes of split '{split}' are too short: record longer ones"
            )
        np.save(output / f"views-{split}.npy", np.stack(views))
        yield from rows


def _ask(
    directory: pathlib.Path, names: Iterable[str], split: str, config: QuestionsConfig
) -> tuple[list[np.ndarray], list[formats.Conversation]]:
    views: list[np.ndarray] = []
    rows: list[formats.Conversation] = []
    for name in names:
        episode = episodes.read_episode(directory, name)
        rng = np.random.default_rng([config.seed, *name.encode()])
        for question in choose(episode.w2c, per_answer=config.per_answer, rng=rng):
            phrases = PHRASES[question.kind]
            turns = (
                chat.Turn("user", phrases[rng.integers(len(phrases))]),
                chat.Turn("model", question.answer),
            )
            row = formats.Conversation(
                name=f"{name}/{question.kind}/{question.first}-{question.second}",
                turns=turns,
                places=({"array": f"views-{split}.npy", "index": len(views)},),
                split=split,
            )
            rows.append(row)
            frames = episode.frames[[question.first, question.second]]
            views.append(side_by_side(frames[0], frames[1], size=config.view_size))
    return views, rows


def kind_of(name: str) -> str:
    """Return the kind of question from the name of its conversation."""
    return name.split("/")[1]
