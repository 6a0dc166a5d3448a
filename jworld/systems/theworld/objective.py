"""TheWorld's training objective: the next token, on answers, or on everything as in the original.

Source: theworld `modeling/theworld.py`, and the loss of transformers 4.56 `models/gemma3`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jworld.data.conversations.chat import IGNORED
from jworld.models.gemma3.text import TextModel
from jworld.models.gemma3.vision import vision_values
from jworld.models.theworld.config import WorldConfig
from jworld.models.theworld.model import TheWorld, insert
from jworld.systems.theworld import world_steps
from jworld.training import step

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Values of the loss (`config.loss`).

    Attributes:
      chunk: tokens per sample whose logits are held at once.
    """

    chunk: int = 256

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}, expected 1 or more tokens")


class Score(NamedTuple):
    """Sums over the tokens that are learnt, float32 scalars: cross entropy, right answers, and how many there are."""

    entropy: jax.Array
    right: jax.Array
    total: jax.Array


def score(model: TextModel, states: jax.Array, targets: jax.Array, *, chunk: int) -> Score:
    """How well states [B, L, D] tell the targets [B, L], `IGNORED` among them.

    No more than the logits of `chunk` tokens per sample exist at once, forward and backward. A chunk is every n-th
    token, so that a sequence that is split over devices stays so.
    """
    batch, length, width = states.shape
    parts = math.ceil(length / chunk)
    padding = [(0, 0), (0, parts * math.ceil(length / parts) - length)]
    states = jnp.pad(states, [*padding, (0, 0)]).reshape(batch, -1, parts, width)
    targets = jnp.pad(targets, padding, constant_values=IGNORED).reshape(batch, -1, parts)

    @jax.checkpoint
    def body(sums: Score, part: tuple[jax.Array, jax.Array]) -> tuple[Score, None]:
        logits, labels = model.logits(part[0]), part[1]
        learnt = labels != IGNORED
        chosen = jnp.take_along_axis(logits, jnp.where(learnt, labels, 0)[..., None], axis=-1)[..., 0]
        entropy = jnp.where(learnt, jax.nn.logsumexp(logits, axis=-1) - chosen, 0.0)
        right = learnt & (chosen >= jnp.max(logits, axis=-1))
        return jax.tree.map(
            jnp.add, sums, Score(*(jnp.sum(x, dtype=jnp.float32) for x in (entropy, right, learnt)))
        ), None

    zero = jnp.zeros((), jnp.float32)
    sums, _ = jax.lax.scan(body, Score(zero, zero, zero), (jnp.moveaxis(states, 2, 0), jnp.moveaxis(targets, 2, 0)))
    return sums


def fused_labels(tokens: jax.Array, labels: jax.Array, mask: jax.Array, world: WorldConfig | None) -> jax.Array:
    """Labels of the fused sequence at their own places, [B, L'], `IGNORED` on padding.

    The original learns every token of a sequence with a world, its brackets too, whatever the labels say.
    """
    if world is None:
        return jnp.where(mask, labels, IGNORED)
    original = world.original
    brackets = (world.start_token, world.end_token) if original else (IGNORED, IGNORED)
    return insert(jnp.where(mask, tokens if original else labels, IGNORED), world, IGNORED, brackets)


def loss(model: TheWorld, batch: Batch, cfg: ObjectiveConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
    """`latent_loss` of a batch, as the system's `batch_spec` describes it."""
    pixels = vision_values(batch["pixel_values"])
    return latent_loss(model, batch, pixels, latents_of(model, batch), cfg)


def latents_of(model: TheWorld, batch: Batch) -> jax.Array | None:
    """What the model sees of the world: latents [B, F, H', W', C]; None where it has none."""
    return None if model.config.world is None else world_steps.world_latents(model, batch["world_pixels"])


def latent_loss(
    model: TheWorld, batch: Batch, pixels: jax.Array, latents: jax.Array | None, cfg: ObjectiveConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean cross entropy of the tokens that are learnt, float32, the share of them that is right, and their number.

    Accumulation over microbatches is a mean over all of their tokens.

    Args:
      model: with or without a world.
      batch: tokens, mask and labels [B, L].
      pixels: [B, I, H, W, 3] in -1..1.
      latents: as of `latents_of`.
      cfg: values of the loss.
    """
    world = model.config.world
    fused = model.fuse(batch["tokens"], batch["mask"], pixels, latents)
    labels = fused_labels(batch["tokens"], batch["labels"], batch["mask"], world)
    states = model.language(fused.embeds, mask=fused.mask, images=fused.images)
    sums = score(model.language, *_predictions(states, labels, world), chunk=cfg.chunk)
    count = jnp.maximum(sums.total, 1)
    metrics = {"accuracy": sums.right / count, "learnt_tokens": sums.total, step.WEIGHT: sums.total}
    return sums.entropy / count, metrics


def _predictions(states: jax.Array, labels: jax.Array, world: WorldConfig | None) -> tuple[jax.Array, jax.Array]:
    """States and the labels that they are to tell; between the brackets of the world there is nothing to learn."""
    if world is None:
        return states[:, :-1], labels[:, 1:]
    last = 1 + world.tokens
    return (
        jnp.concatenate([states[:, :1], states[:, last:-1]], axis=1),
        jnp.concatenate([labels[:, 1:2], labels[:, last + 1 :]], axis=1),
    )
