"""Losses of WorldPlay by `config.loss.kind`, and what those of a distillation need of other sections."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections

from jworld.data import records
from jworld.systems.worldplay import context_forcing, distillation, objective, rollout_data
from jworld.systems.worldplay.context_forcing import ContextForcingConfig
from jworld.systems.worldplay.data import ClipConfig
from jworld.systems.worldplay.distillation import ConsistencyConfig
from jworld.systems.worldplay.latents import SampleConfig
from jworld.training import parts
from jworld.utils import errors

Loss = objective.ObjectiveConfig | ConsistencyConfig | ContextForcingConfig
LOSSES: dict[str, type[Loss]] = {
    "flow": objective.ObjectiveConfig,
    "consistency": distillation.ConsistencyConfig,
    "context_forcing": context_forcing.ContextForcingConfig,
}


def of(config: ml_collections.ConfigDict) -> type[Loss]:
    """Return the class of `config.loss`; a `UserError` if its kind is unknown."""
    kind = config.loss.get("kind", "flow")
    if kind not in LOSSES:
        raise errors.UserError(f"config.loss.kind: found {kind!r}, expected one of {', '.join(LOSSES)}")
    return LOSSES[kind]


def check(config: ml_collections.ConfigDict, loss: Loss, sample: SampleConfig) -> None:
    """Raise a `UserError` if other sections of the config do not fit the loss."""
    if isinstance(loss, objective.ObjectiveConfig):
        return
    if not config.init_from:
        raise errors.UserError(
            "config.init_from is empty, expected a run or imported weights of the autoregressive model, from which the "
            "student starts"
        )
    if sample.mode != "autoregressive" or sample.guidance != 1:
        raise errors.UserError(
            f"config.sample.rollout has mode {sample.mode!r} and guidance {sample.guidance}, expected 'autoregressive' "
            "and 1: a student is autoregressive, and its teacher's guidance is config.loss.teacher_guidance"
        )
    parts.check_trainable(config.optimizer.trainable, "patch_in/kernel")
    if isinstance(loss, ConsistencyConfig):
        if not (config.optimizer.get("ema_decay", 0) or config.optimizer.get("ema_rate", 0)):
            raise errors.UserError(
                "config.optimizer.ema_decay is 0, but the target of the distillation is the EMA: set it, for example "
                "to 0.99"
            )
    elif "critic" not in config:
        raise errors.UserError(
            "config.critic is missing: context forcing trains a critic, whose optimizer this section describes"
        )


def rollouts(loss: Loss, clip: ClipConfig) -> rollout_data.RolloutClip | None:
    """Return the sizes of the examples of context forcing; None for another loss.

    Raises:
      UserError: the rollout does not fit the shortest clips, or the window of an autoregressive teacher.
    """
    if not isinstance(loss, ContextForcingConfig):
        return None
    frames, teacher_frames = loss.chunks * clip.chunk_frames, None
    shortest = min(most for _, most in clip.curriculum)
    if frames > shortest:
        raise errors.UserError(
            f"config.loss.chunks is {loss.chunks}, {frames} latents, but config.data.clip.curriculum has clips of "
            f"{shortest}: lower the one or raise the other"
        )
    if loss.score == "autoregressive":
        # Positions beyond the window of its training would be new to the teacher.
        teacher_frames = clip.window_frames - frames
        if teacher_frames < 0:
            raise errors.UserError(
                f"config.loss.chunks is {loss.chunks}, {frames} latents, but the window of an autoregressive teacher "
                f"has {clip.window_frames}: lower it, or take the scores of a bidirectional teacher"
            )
    return rollout_data.RolloutClip(clip=clip, chunks=loss.chunks, teacher_frames=teacher_frames)


def rollout_spec(
    sizes: rollout_data.RolloutClip,
    channels: int,
    spec: Callable[..., records.ArraySpec],
    others: Mapping[str, records.ArraySpec],
) -> dict[str, records.ArraySpec]:
    """Return shape, dtype and axes of every array of a batch of context forcing.

    Args:
      sizes: of an example.
      channels: latent channels.
      spec: makes an entry from a dtype and a shape without the batch axis.
      others: entries of text and images.
    """
    own: dict[str, Any] = {name: spec(dtype, *shape) for name, (shape, dtype) in sizes.shapes().items()}
    own["latent"] = spec(jnp.bfloat16, sizes.recorded_frames, *sizes.clip.latent_size, channels)
    return own | dict(others)
