"""Losses of WorldPlay by `config.loss.kind`, and what they need of other sections."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections

from jworld.data import records
from jworld.systems.worldplay import objective, rollout_data
from jworld.systems.worldplay.bidirectional_objective import BidirectionalConfig
from jworld.systems.worldplay.context_forcing import ContextForcingConfig
from jworld.systems.worldplay.data import ClipConfig
from jworld.systems.worldplay.distillation import ConsistencyConfig
from jworld.systems.worldplay.latents import SampleConfig
from jworld.systems.worldplay.shortcut import ShortcutConfig
from jworld.training import parts
from jworld.utils import config as run_config
from jworld.utils import errors

#: Losses with a teacher.
Taught = ConsistencyConfig | ContextForcingConfig
Loss = objective.ObjectiveConfig | BidirectionalConfig | ShortcutConfig | Taught
LOSSES: dict[str, type[Loss]] = {
    "flow": objective.ObjectiveConfig,
    "consistency": ConsistencyConfig,
    "context_forcing": ContextForcingConfig,
    "shortcut": ShortcutConfig,
    "bidirectional": BidirectionalConfig,
}


def check(config: ml_collections.ConfigDict, loss: Loss, sample: SampleConfig) -> None:
    """Raise a `UserError` if other sections of the config do not fit the loss."""
    _check_kind_of_model(config, loss, sample)
    if not isinstance(loss, Taught):
        return
    if not config.init_from:
        raise errors.UserError(
            "config.init_from is empty, expected a run or imported weights of the autoregressive model, from which the "
            "student starts"
        )
    if sample.guidance != 1:
        raise errors.UserError(
            f"config.sample.rollout.guidance is {sample.guidance}, expected 1: the guidance of a student's teacher is "
            "config.loss.teacher_guidance"
        )
    parts.check_trainable(config.optimizer.trainable, "patch_in/kernel")
    if isinstance(loss, ConsistencyConfig):
        if not (config.optimizer.get("ema_decay", 0) or config.optimizer.get("ema_rate", 0)):
            raise errors.UserError(
                "config.optimizer.ema_decay is 0, but the target of the distillation is the EMA: set it, for example "
                "to 0.99"
            )
    else:
        parts.check_critic(config, "context forcing")


def _check_kind_of_model(config: ml_collections.ConfigDict, loss: Loss, sample: SampleConfig) -> None:
    """Check the model's attention and inputs against the loss."""
    mode = "bidirectional" if isinstance(loss, BidirectionalConfig) else "autoregressive"
    if sample.mode != mode and not isinstance(loss, objective.ObjectiveConfig):
        raise errors.UserError(
            f"config.sample.rollout.mode is {sample.mode!r}, expected {mode!r}, which is the kind of model that "
            f"config.loss.kind {loss.kind!r} trains"
        )
    if sample.mode != mode and config.model.get("references", False):
        # Published models have no references, and the same objective for both kinds.
        raise errors.UserError(
            f"config.sample.rollout.mode is {sample.mode!r}, but a model with config.model.references that "
            f"config.loss.kind {loss.kind!r} trains is {mode}: set {mode!r}"
        )
    has_sizes = config.model.get("step_sizes", False)
    if isinstance(loss, ShortcutConfig) and not has_sizes:
        raise errors.UserError(
            "config.model.step_sizes is False, expected True: shortcut training gives the network the size of its step"
        )
    if isinstance(loss, ConsistencyConfig) and has_sizes:
        raise errors.UserError(
            "config.model.step_sizes is True, expected False: a student of consistency always predicts the end"
        )


def check_teacher(loss: ContextForcingConfig, folder: pathlib.Path) -> None:
    """Raise a `UserError` if the model in a folder, which may be absent, is of the other kind than `loss.score`."""
    if not (folder / run_config.FILE_NAME).is_file():
        return
    mode = run_config.value_at(run_config.load(folder), "sample.rollout.mode", SampleConfig.mode)
    if mode != loss.score:
        raise errors.UserError(
            f"config.loss.score is {loss.score!r}, but the model in {folder} (config.loss.teacher) is {mode}: name "
            "another folder, or set the score to the kind of its model"
        )


def rollouts(loss: Loss, clip: ClipConfig, sequence: int) -> rollout_data.RolloutClip | None:
    """Return the sizes of the examples of context forcing, or of its bidirectional teacher; None for another loss.

    Raises:
      UserError: the rollout does not fit the shortest clips, or the window of an autoregressive teacher, or its frames
        do not divide over `sequence` devices.
    """
    if not isinstance(loss, ContextForcingConfig | BidirectionalConfig):
        return None
    sizes = _rollouts(loss, clip)
    if sequence > 0 and sizes.frames % sequence:
        raise errors.UserError(
            f"config.mesh.sequence is {sequence}, which does not divide the {sizes.frames} latent frames of an "
            f"example, {sizes.recorded_frames} of memory and {sizes.rollout_frames} of {loss.chunks} chunks: choose a "
            "divisor"
        )
    return sizes


def _rollouts(loss: ContextForcingConfig | BidirectionalConfig, clip: ClipConfig) -> rollout_data.RolloutClip:
    frames, teacher_frames = loss.chunks * clip.chunk_frames, None
    shortest = min(most for _, most in clip.curriculum)
    if frames > shortest:
        raise errors.UserError(
            f"config.loss.chunks is {loss.chunks}, {frames} latents, but config.data.clip.curriculum has clips of "
            f"{shortest}: lower the one or raise the other"
        )
    if isinstance(loss, BidirectionalConfig):
        return rollout_data.RolloutClip(clip=clip, chunks=loss.chunks, has_targets=True)
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
    """Return shape, dtype and axes of every array of a batch of rollouts.

    Args:
      sizes: of an example.
      channels: latent channels.
      spec: makes an entry from a dtype and a shape without the batch axis.
      others: entries of text and images.
    """
    own: dict[str, Any] = {name: spec(dtype, *shape) for name, (shape, dtype) in sizes.shapes().items()}
    own["latent"] = spec(jnp.bfloat16, sizes.recorded_frames, *sizes.clip.latent_size, channels)
    if sizes.has_targets:
        own["target"] = spec(jnp.bfloat16, sizes.rollout_frames, *sizes.clip.latent_size, channels)
    return own | dict(others)
