"""The embedded benchmark: questions about held-out episodes, see `jworld.data.conversations.questions`."""

import functools

from jworld.data.conversations import prepared, questions
from jworld.systems.theworld.evaluation import benchmarks, vsr
from jworld.utils import indices

MAX_TOKENS = 8


def load(source: prepared.Source, *, limit: int) -> benchmarks.Benchmark:
    """Load the questions of a split, at most `limit` (0: all), spread evenly over it."""
    rows = [source[number] for number in indices.evenly(len(source), limit or len(source))]
    examples = [
        benchmarks.Example(
            name=row.name,
            task=questions.kind_of(row.name),
            prompt=row.turns[0].text,
            truth=row.turns[1].text,
            choices=questions.ANSWERS[questions.kind_of(row.name)],
            load=functools.partial(vsr.open_images, row, source.directory),
        )
        for row in rows
    ]
    return benchmarks.Benchmark(
        name="questions about held-out episodes",
        examples=examples,
        max_tokens=MAX_TOKENS,
        read=_read,
        measure=benchmarks.accuracy,
        chance=50.0,
    )


def _read(example: benchmarks.Example, text: str) -> str | None:
    """Return the choice that the text names first, or None."""
    places = {choice: text.lower().find(choice) for choice in example.choices}
    named = {choice: place for choice, place in places.items() if place >= 0}
    return min(named, key=lambda choice: named[choice]) if named else None
