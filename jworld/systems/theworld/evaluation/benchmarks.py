"""A benchmark: examples that a model answers, and how its answers are read and counted."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import PIL.Image
import rich.console
import rich.progress


class Answer(Protocol):
    """Answers prompts about images, a batch at a time, greedily."""

    def __call__(
        self, images: Sequence[Sequence[PIL.Image.Image]], prompts: Sequence[str], *, max_tokens: int
    ) -> list[str]:
        """One text of at most `max_tokens` tokens for each of the prompts and its images."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A question.

    Attributes:
      load: opens its images; a `ValueError` where one cannot be read.
      choices: what it offers, if anything.
      facts: what else the score needs, ready for JSON.
    """

    name: str
    task: str
    prompt: str
    truth: str
    load: Callable[[], list[PIL.Image.Image]]
    choices: tuple[str, ...] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


#: An example with its answer: name, task, prompt, truth, prediction, parsed, score (1 is right), and facts.
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Questions and their score.

    Attributes:
      max_tokens: of an answer.
      read: what an answer means, None where it means nothing.
      judge: sets the score of all rows where being equal to the truth is not the point.
      measure: rows of a task -> its numbers, `accuracy` (percent), `correct` and `total` among them.
      chance: the accuracy of guessing, in percent; None where there is none.
    """

    name: str
    examples: Sequence[Example]
    max_tokens: int
    read: Callable[[Example, str], str | None]
    measure: Callable[[Sequence[Row]], dict[str, Any]]
    chance: float | None
    judge: Callable[[Sequence[Row]], None] | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """rows with their scores; the numbers of each task; why examples were left out, by name."""

    rows: list[Row]
    tasks: dict[str, dict[str, Any]]
    skipped: dict[str, str]

    @property
    def accuracy(self) -> float:
        """Percent, the mean over the tasks."""
        return sum(task["accuracy"] for task in self.tasks.values()) / len(self.tasks)


def accuracy(rows: Sequence[Row]) -> dict[str, Any]:
    """The plain numbers of a task."""
    right = sum(row["score"] == 1.0 for row in rows)
    unread = sum(row["parsed"] is None for row in rows)
    return {"accuracy": 100 * right / len(rows), "correct": right, "total": len(rows), "unparsed": unread}


def run(benchmark: Benchmark, answer: Answer, *, batch: int, console: rich.console.Console, title: str) -> Outcome:
    """Ask everything, `batch` questions at a time; the last batch is filled up, so that all have one shape."""
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    starts = range(0, len(benchmark.examples), batch)
    for start in rich.progress.track(starts, f"{benchmark.name}: {title}", console=console):
        asked: list[tuple[Example, list[PIL.Image.Image]]] = []
        for example in benchmark.examples[start : start + batch]:
            try:
                asked.append((example, example.load()))
            except ValueError as error:
                skipped[example.name] = str(error)
        if asked:
            filled = [*asked, *[asked[-1]] * (batch - len(asked))]
            said = answer(
                [images for _, images in filled],
                [example.prompt for example, _ in filled],
                max_tokens=benchmark.max_tokens,
            )
            rows += [_row(benchmark, example, text) for (example, _), text in zip(asked, said, strict=False)]
    if benchmark.judge is not None:
        benchmark.judge(rows)
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row["task"], []).append(row)
    return Outcome(rows, {task: benchmark.measure(own) for task, own in tasks.items()}, skipped)


def _row(benchmark: Benchmark, example: Example, text: str) -> Row:
    parsed = benchmark.read(example, text)
    return {
        "name": example.name,
        "task": example.task,
        "prompt": example.prompt,
        "truth": example.truth,
        "prediction": text,
        "parsed": parsed,
        "score": float(parsed == example.truth),
        **example.facts,
    }
