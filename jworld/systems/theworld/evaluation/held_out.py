"""Held-out conversations of a run: loss and token accuracy, and answers compared with their references."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jworld.data.conversations import dataset, image_files, prepared
from jworld.models.gemma3.vision import vision_values
from jworld.models.theworld.model import TheWorld
from jworld.systems.theworld import objective
from jworld.systems.theworld.evaluation import benchmarks
from jworld.utils import indices

#: Batches that are measured, at most, and conversations that are answered without another number.
BATCHES, ANSWERED = 8, 16


def measure(
    model: TheWorld, data: dataset.Conversations, ways: Mapping[str, int], cfg: objective.ObjectiveConfig
) -> dict[str, dict[str, float]]:
    """Measure the held-out loss with different parts of the world.

    Args:
      model: the model.
      data: its data set, whose first held-out batches are read, at most `BATCHES`.
      ways: name -> latent frames of the world; 0 for none.
      cfg: values of the loss.

    Returns:
      name -> "loss", the mean cross entropy of a token with a label; "token_accuracy", in percent; "tokens", their
      number.
    """
    scores = {name: _score(cfg, frames) for name, frames in ways.items()}
    batches = data.batches("val")
    sums = {name: np.zeros(3) for name in ways}
    for _ in range(max(1, min(BATCHES, batches.records // data.global_batch))):
        batch = {name: jnp.asarray(value) for name, value in next(batches).items() if name != "index"}
        for name, score in scores.items():
            loss, metrics = score(model, batch)
            count = float(metrics["loss_tokens"])
            sums[name] += count * np.array([float(loss), float(metrics["accuracy"]), 1.0])
    return {
        name: {"loss": entropy / count, "token_accuracy": 100 * right / count, "tokens": count}
        for name, (entropy, right, count) in ((name, map(float, total)) for name, total in sums.items())
    }


def _score(cfg: objective.ObjectiveConfig, frames: int) -> Callable[..., tuple[jax.Array, dict[str, jax.Array]]]:
    """Return the compiled loss with a number of latent frames of the world."""

    @jax.jit
    def score(model: TheWorld, batch: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
        latents = objective.latents_of(model, batch, frames)
        return objective.latent_loss(model, batch, vision_values(batch["pixel_values"]), latents, cfg)

    return score


def load(source: prepared.Source, *, limit: int, max_tokens: int) -> benchmarks.Benchmark:
    """Load the first questions of at most `limit` held-out conversations (0: `ANSWERED`), spread evenly over them.

    An answer is right if it equals its reference, except for case, spaces and a final period.
    """
    rows = [source[number] for number in indices.evenly(len(source), min(limit or ANSWERED, len(source)))]
    examples = []
    for row in rows:
        opening = row.opening
        examples.append(
            benchmarks.Example(
                name=row.name,
                task="equal to the reference",
                prompt=opening.text,
                turns=opening.turns,
                truth=normalized(opening.truth),
                reference=opening.truth,
                facts={"reference": opening.truth},
                load=functools.partial(
                    lambda places: [image_files.read(place, source.directory) for place in places], opening.places
                ),
            )
        )
    return benchmarks.Benchmark(
        name="held-out conversations",
        examples=examples,
        max_tokens=max_tokens,
        read=lambda example, text: normalized(text),
        measure=benchmarks.accuracy,
        chance=None,
    )


def normalized(text: str) -> str:
    """Return a text in lower case, with single spaces and without a final period."""
    return " ".join(text.lower().split()).removesuffix(".")
