"""Training of the bidirectional model: chunks of one noise level after retrieved memory, all frames attending to all.

No trainer of this model is published. The window is that of a bidirectional rollout, and of the scores of context
forcing: the memory of several chunks, then those chunks, which are recorded ones here. The loss is flow matching of all
chunks.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jworld.diffusion import distribution_matching, flow_matching
from jworld.models.hunyuan.transformer import HunyuanTransformer
from jworld.systems.worldplay import context_forcing, distillation, objective
from jworld.utils import ranges


@dataclasses.dataclass(frozen=True, kw_only=True)
class BidirectionalConfig(distillation.ContextConfig, objective.TimesConfig):
    """Settings of the training of the bidirectional model (`config.loss`).

    Attributes:
      kind: "bidirectional".
      chunks: training chunks that are denoised together; sampling has 4. They continue a recorded prefix of random
        length (`data.clip.curriculum`).
    """

    kind: Literal["bidirectional"] = "bidirectional"
    chunks: ranges.Steps = 4


class Draws(NamedTuple):
    """All random numbers of a loss.

    Attributes:
      level: noise levels [B] of the chunks, 0 to 1.
      noise: standard normal, in the shape of the chunks [B, n * f, H, W, C].
      context: of the context frames.
    """

    level: jax.Array
    noise: jax.Array
    context: distillation.ContextDraws


def draw(key: jax.Array, batch: objective.Batch, cfg: BidirectionalConfig, *, context_time: float) -> Draws:
    """Draw the random numbers of a loss; see `distillation.draw_context`."""
    level_key, noise_key, context_key = jax.random.split(key, 3)
    shape = batch["target"].shape
    times = flow_matching.training_timesteps(cfg.draw(level_key, shape[:1]), cfg.shift)
    return Draws(
        level=times / flow_matching.NUM_TIMESTEPS,
        noise=jax.random.normal(noise_key, shape),
        context=distillation.draw_context(context_key, batch["latent"].shape, cfg, context_time=context_time),
    )


def loss(
    model: HunyuanTransformer, batch: objective.Batch, draws: Draws, cfg: BidirectionalConfig
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the weighted mean squared error of the velocity, a float32 scalar.

    Args:
      model: model that predicts noise - clean.
      batch: arrays of `WorldPlay.batch_spec`.
      draws: the random numbers.
      cfg: the settings.
    """
    target = batch["target"].astype(jnp.float32)
    predicted, _ = context_forcing.score(
        model,
        {**batch, "latent": draws.context.noisy(batch["latent"])},
        target,
        draws.level,
        draws.noise,
        chunk_frames=None,
        guidance=1.0,
        context_time=draws.context.time[:, None],
    )
    weight = flow_matching.error_weights(draws.level, cfg.sigma_floor)
    return distribution_matching.critic_loss(predicted, draws.noise - target, weight), {}
