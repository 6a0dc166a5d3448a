"""Losses of distribution matching distillation, for a student that carries a teacher and a critic (see `parts`).

A system describes how its student makes samples and how a network scores them: `Matching`. The critic's loss and the
student's are then the same for all systems. `step.make_train_step` alternates the two, several updates of the critic
before each of the student. Sources: DMD2, arXiv 2405.14867; one step with a gradient as in Self Forcing, arXiv
2506.08009.
"""

from typing import NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from jworld.diffusion import distribution_matching
from jworld.training import parts

Metrics = dict[str, jax.Array]
Network = TypeVar("Network", bound=nnx.Module)
#: What a system keeps of a rollout to repeat its last step.
Rollout = TypeVar("Rollout")
Contravariant = TypeVar("Contravariant", bound=nnx.Module, contravariant=True)


class Scores(NamedTuple):
    """Prediction of a network for noisy samples, all [B, F, H, W, C].

    Attributes:
      clean: predicted clean samples.
      output: what the critic's loss compares with `target`, such as the velocity.
      target: its value for the true noise and samples.
    """

    clean: jax.Array
    output: jax.Array
    target: jax.Array


class Matching(Protocol[Contravariant, Rollout]):
    """Samples of a student and their scores, with the batch and the random numbers of one loss."""

    def roll_out(self, model: Contravariant) -> Rollout:
        """Sample up to the last denoising step, without gradients."""

    def repeat(self, model: Contravariant, rollout: Rollout) -> jax.Array:
        """Return the samples [B, F, H, W, C] by the last denoising step, with gradients."""

    def made(self, rollout: Rollout) -> jax.Array | None:
        """Return the samples of a rollout without gradients; None if only `repeat` makes them."""

    def score(self, network: Contravariant, made: jax.Array, *, is_teacher: bool) -> Scores:
        """Add noise to samples and predict them; the teacher has guidance."""


def student_loss(model: Network, matching: Matching[Network, Rollout]) -> tuple[jax.Array, Metrics]:
    """Return the student's loss, a float32 scalar, and the mean distance of the two scores as `score_distance`."""
    rollout = matching.roll_out(model)
    made, clean = matching.made(rollout), None
    if made is None:
        clean = matching.repeat(model, rollout)
        made = jax.lax.stop_gradient(clean)
    real = matching.score(parts.of(model, parts.TEACHER), made, is_teacher=True).clean
    fake = matching.score(parts.of(model, parts.CRITIC), made, is_teacher=False).clean
    slope = jax.lax.stop_gradient(distribution_matching.gradient(made, real, fake))
    if clean is None:
        clean = matching.repeat(model, rollout)
    return distribution_matching.loss(clean, slope), {"score_distance": jnp.mean(jnp.abs(slope))}


def critic_loss(
    model: Network, matching: Matching[Network, Rollout], weight: jax.Array | None = None
) -> tuple[jax.Array, Metrics]:
    """Return the critic's loss on samples of the student, a float32 scalar; `weight` [B] is that of each sample."""
    rollout = matching.roll_out(model)
    made = matching.made(rollout)
    if made is None:
        made = matching.repeat(model, rollout)
    made = jax.lax.stop_gradient(made)
    scores = matching.score(parts.of(model, parts.CRITIC), made, is_teacher=False)
    return distribution_matching.critic_loss(scores.output, scores.target, weight), {}


def without_gradients(model: Network) -> Network:
    """Return the model with constant weights: loops over it are not prepared for a backward pass."""
    graphdef, weights = nnx.split(model)
    return nnx.merge(graphdef, jax.lax.stop_gradient(weights))
