"""TheWorld's training objective: next-token prediction, on answers, or on all tokens as in the original.

Source: theworld `modeling/theworld.py`, and the loss of transformers 4.56 `models/gemma3`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp

from jworld.data.conversations.chat import IGNORED
from jworld.models.gemma3.text import TextModel
from jworld.models.gemma3.vision import vision_values
from jworld.models.theworld.config import WorldConfig
from jworld.models.theworld.model import TheWorld, insert, world_mask
from jworld.systems.theworld import world_steps
from jworld.training import step
from jworld.utils import ranges

Batch = Mapping[str, jax.Array]
#: Tokens whose logits are in memory at once for `log_likelihoods`.
_CHUNK = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Values of the loss (`config.loss`).

    Attributes:
      chunk: tokens per sample whose logits are in memory at once.
    """

    chunk: ranges.Size = 256

    def __post_init__(self) -> None:
        ranges.check(self)


class Score(NamedTuple):
    """Sums over the tokens of the loss, float32 scalars: cross entropy, right predictions, and number of tokens."""

    entropy: jax.Array
    right: jax.Array
    total: jax.Array


def score(model: TextModel, states: jax.Array, targets: jax.Array, *, chunk: int) -> Score:
    """Score the prediction of targets [B, L], which may be `IGNORED`, from states [B, L, D].

    At most the logits of `chunk` tokens per sample exist at once, forward and backward. A chunk is every n-th token, so
    that a sequence that is sharded over devices stays sharded.
    """
    length = states.shape[1]
    parts = math.ceil(length / chunk)
    padding = [(0, 0), (0, parts * math.ceil(length / parts) - length)]
    states, targets = jnp.pad(states, [*padding, (0, 0)]), jnp.pad(targets, padding, constant_values=IGNORED)
    chunks = tuple(einops.rearrange(x, "b (l part) ... -> part b l ...", part=parts) for x in (states, targets))

    @jax.checkpoint
    def body(sums: Score, part: tuple[jax.Array, jax.Array]) -> tuple[Score, None]:
        logits, labels = model.logits(part[0]), part[1]
        counted = labels != IGNORED
        chosen = jnp.take_along_axis(logits, jnp.where(counted, labels, 0)[..., None], axis=-1)[..., 0]
        entropy = jnp.where(counted, jax.nn.logsumexp(logits, axis=-1) - chosen, 0.0)
        right = counted & (chosen >= jnp.max(logits, axis=-1))
        return jax.tree.map(
            jnp.add, sums, Score(*(jnp.sum(x, dtype=jnp.float32) for x in (entropy, right, counted)))
        ), None

    zero = jnp.zeros((), jnp.float32)
    sums, _ = jax.lax.scan(body, Score(zero, zero, zero), chunks)
    return sums


def fused_labels(
    tokens: jax.Array,
    labels: jax.Array,
    mask: jax.Array,
    world: WorldConfig | None,
    has_world: jax.Array | None = None,
    *,
    count: int | None = None,
) -> jax.Array:
    """Return the labels of the fused sequence, [B, L'], aligned with its tokens and `IGNORED` on padding.

    With `compat` the loss covers every token of a sequence with a world and its brackets, for all labels, as in the
    original. Rows without a world have the given labels. `count` is the number of world tokens, by default all.
    """
    labels = jnp.where(mask, labels, IGNORED)
    if world is None:
        return labels
    count = world.tokens if count is None else count
    fused = insert(labels, world, IGNORED, tokens=count)
    if world.original:
        brackets = world.start_token, world.end_token
        every = insert(jnp.where(mask, tokens, IGNORED), world, IGNORED, brackets, tokens=count)
        fused = every if has_world is None else jnp.where(has_world[:, None], every, fused)
    if has_world is None:
        return fused
    # Nothing predicts the first token, which is in the end bracket's column of these rows.
    return jnp.where(world_mask(fused, has_world, count + 3), fused, IGNORED)


def loss(model: TheWorld, batch: Batch, cfg: ObjectiveConfig) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Compute `latent_loss` of a batch of the system's `batch_spec`."""
    pixels = vision_values(batch["pixel_values"])
    return latent_loss(model, batch, pixels, latents_of(model, batch), cfg)


def latents_of(model: TheWorld, batch: Batch, frames: int | None = None) -> jax.Array | None:
    """Return `frames` latents of the world [B, F, H', W', C], all for None; None for 0 or a model without a world."""
    if model.config.world is None or frames == 0:
        return None
    return world_steps.world_latents(model, batch["world_pixels"], frames)


def latent_loss(
    model: TheWorld, batch: Batch, pixels: jax.Array, latents: jax.Array | None, cfg: ObjectiveConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Compute the mean cross entropy of the tokens with labels, float32.

    The metrics are the share of right predictions, and the number of tokens. Gradient accumulation weights microbatches
    by that number.

    Args:
      model: with or without a world.
      batch: tokens, mask and labels [B, L], and has_world [B] if not all rows have a world.
      pixels: images [B, I, H, W, 3] in -1..1.
      latents: result of `latents_of`; None omits the world.
      cfg: values of the loss.
    """
    sums = score(model.language, *_states(model, batch, pixels, latents, model.config.world), chunk=cfg.chunk)
    total = jnp.maximum(sums.total, 1)
    metrics = {"accuracy": sums.right / total, "loss_tokens": sums.total, step.WEIGHT: sums.total}
    return sums.entropy / total, metrics


def log_likelihoods(model: TheWorld, batch: Batch, pixels: jax.Array | None, latents: jax.Array | None) -> jax.Array:
    """Return the sum of the log probabilities of the tokens with labels of each row, [B] float32.

    With `compat` too, only the given labels count.
    """
    world = model.config.world
    sound = None if world is None else dataclasses.replace(world, compat="")
    states, labels = _states(model, batch, pixels, latents, sound)

    def one(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        return -score(model.language, row[0][None], row[1][None], chunk=_CHUNK).entropy

    found: jax.Array = jax.lax.map(one, (states, labels))
    return found


def _states(
    model: TheWorld, batch: Batch, pixels: jax.Array | None, latents: jax.Array | None, world: WorldConfig | None
) -> tuple[jax.Array, jax.Array]:
    """Return states [B, L, D] and the labels [B, L] that they predict; `world` determines the labels."""
    world = None if latents is None else world
    has_world = batch.get("has_world")
    fused = model.fuse(batch["tokens"], batch["mask"], pixels, latents, has_world)
    count = fused.embeds.shape[1] - batch["tokens"].shape[1] - 2
    labels = fused_labels(batch["tokens"], batch["labels"], batch["mask"], world, has_world, count=count)
    states = model.language(fused.embeds, mask=fused.mask, positions=fused.positions, images=fused.images)
    return _predictions(states, labels, None if world is None else count)


def _predictions(states: jax.Array, labels: jax.Array, count: int | None) -> tuple[jax.Array, jax.Array]:
    """Return states and the labels that they predict, without the positions of the `count` tokens of the world."""
    if count is None:
        return states[:, :-1], labels[:, 1:]
    last = 1 + count
    return (
        jnp.concatenate([states[:, :1], states[:, last:-1]], axis=1),
        jnp.concatenate([labels[:, 1:2], labels[:, last + 1 :]], axis=1),
    )
