"""Benchmarks: examples that a model answers, and the parsing and scoring of its answers."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import PIL.Image
import rich.console
import rich.progress

from jworld.data.conversations import chat
from jworld.utils.errors import UserError


class Answer(Protocol):
    """A function that answers a batch of prompts about images greedily."""

    def __call__(
        self, images: Sequence[Sequence[PIL.Image.Image]], prompts: Sequence[Any], *, max_tokens: int
    ) -> list[str]:
        """Answer each prompt, a text or the turns of a conversation, about its images in at most `max_tokens`."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A question.

    Attributes:
      load: function that opens its images; raises a `ValueError` if one cannot be read.
      reference: the true answer in full, if `truth` is a shorter form of it.
      turns: the turns of which `prompt` is the text, if it is more than a question.
      choices: possible answers in words, if any.
      options: what a right answer may consist of, if there are several; by default `choices`.
      facts: further values for the score, ready for JSON.
    """

    name: str
    task: str
    prompt: str
    truth: str
    load: Callable[[], list[PIL.Image.Image]]
    reference: str = ""
    turns: tuple[chat.Turn, ...] = ()
    choices: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


#: An example and its answer: name, task, prompt, truth, prediction, parsed, score, and facts. The score is 1 for a
#: right answer; None if the truth cannot be read, so that the row does not count.
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Questions and their scoring.

    Attributes:
      max_tokens: largest number of tokens of an answer.
      read: parser of an answer; None if it cannot be parsed.
      judge: function that sets the score of all rows, for benchmarks that do not compare with the truth.
      measure: function from the rows of a task to its metrics, including `accuracy` (percent), `correct` and `total`.
      chance: accuracy of guessing, in percent; None if undefined.
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
    """Results of a benchmark.

    Attributes:
      rows: rows with their scores.
      tasks: metrics of each task.
      skipped: name of each skipped example -> reason.
    """

    rows: list[Row]
    tasks: dict[str, dict[str, Any]]
    skipped: dict[str, str]

    @property
    def accuracy(self) -> float:
        """Accuracy in percent, the mean over the tasks."""
        return float(sum(task["accuracy"] for task in self.tasks.values()) / len(self.tasks))


@runtime_checkable
class Ranking(Protocol):
    """A function that computes how likely answers are."""

    def likelihoods(
        self, images: Sequence[Sequence[PIL.Image.Image]], prompts: Sequence[Any], options: Sequence[str]
    ) -> list[float]:
        """Return the logarithm of the probability of one answer per prompt."""
        ...


def accuracy(rows: Sequence[Row]) -> dict[str, Any]:
    """Compute the accuracy of a task."""
    right = sum(row["score"] == 1.0 for row in rows)
    unread = sum(row["parsed"] is None for row in rows)
    return {"accuracy": 100 * right / len(rows), "correct": right, "total": len(rows), "unparsed": unread}


def run(
    benchmark: Benchmark,
    answer: Answer,
    *,
    batch: int,
    console: rich.console.Console,
    title: str,
    by_likelihood: bool = False,
    keep: Callable[[Row], object] = lambda row: None,
) -> Outcome:
    """Run a benchmark, `batch` questions at a time; the last batch is filled up, so that all have the same shape.

    `keep` receives every row when it is answered. `by_likelihood` takes the most likely option of a question as its
    answer, instead of parsing a free one; a `UserError` if a question has no options.
    """
    if by_likelihood and not all(example.options or example.choices for example in benchmark.examples):
        raise UserError(f"--scoring likelihood: the questions of {benchmark.name} have no options: leave it out")
    rows: list[Row] = []
    skipped: dict[str, str] = {}
    starts = range(0, len(benchmark.examples), batch)
    for start in rich.progress.track(starts, f"{benchmark.name}: {title}", console=console):
        loaded: list[tuple[Example, list[PIL.Image.Image]]] = []
        for example in benchmark.examples[start : start + batch]:
            try:
                loaded.append((example, example.load()))
            except ValueError as error:
                skipped[example.name] = str(error)
        if loaded:
            filled = [*loaded, *[loaded[-1]] * (batch - len(loaded))]
            images = [own for _, own in filled]
            prompts = [example.turns or example.prompt for example, _ in filled]
            if by_likelihood:
                assert isinstance(answer, Ranking)
                options = [example.options or example.choices for example, _ in filled]
                ranked = _ranked(answer, images, prompts, options)
                answered = [_chosen(example, own) for (example, _), own in zip(loaded, ranked, strict=False)]
            else:
                texts = answer(images, prompts, max_tokens=benchmark.max_tokens)
                answered = [_row(benchmark, example, text) for (example, _), text in zip(loaded, texts, strict=False)]
            for row in answered:
                keep({"answers": title, **row})
            rows += answered
    if benchmark.judge is not None and not by_likelihood:
        benchmark.judge(rows)
    tasks: dict[str, list[Row]] = {}
    for row in rows:
        tasks.setdefault(row["task"], []).append(row)
    return Outcome(rows, {task: benchmark.measure(own) for task, own in tasks.items()}, skipped)


def _ranked(
    answer: Ranking,
    images: Sequence[Sequence[PIL.Image.Image]],
    prompts: Sequence[Any],
    options: Sequence[Sequence[str]],
) -> list[dict[str, float]]:
    """Return the options of each prompt with their log likelihoods."""
    found: list[dict[str, float]] = [{} for _ in prompts]
    for number in range(max(map(len, options))):
        # Prompts with fewer options repeat their last one, so that all batches have the same shape.
        chosen = [own[min(number, len(own) - 1)] for own in options]
        for row, option, value in zip(found, chosen, answer.likelihoods(images, prompts, chosen), strict=True):
            row[option] = value
    return found


def _chosen(example: Example, likelihoods: Mapping[str, float]) -> Row:
    best = max(likelihoods, key=lambda option: likelihoods[option])
    return {**_facts(example, best, best), "likelihoods": dict(likelihoods)}


def _row(benchmark: Benchmark, example: Example, text: str) -> Row:
    return _facts(example, text, benchmark.read(example, text))


def _facts(example: Example, text: str, parsed: str | None) -> Row:
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
