"""Optimizer section of a config: schedule, transformation, and the rules that the train step applies around it."""

import dataclasses
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal

import jax.numpy as jnp
import ml_collections
import optax

from jworld.training import muon, schedules
from jworld.utils import config as run_config
from jworld.utils import errors, ranges

Name = Literal["muon", "adamw"]
Schedule = Literal[
    "constant",
    "constant_with_warmup",
    "linear",
    "linear_with_min_lr",
    "cosine",
    "cosine_with_min_lr",
    "cosine_with_restarts",
    "polynomial",
]
NAMES: tuple[Name, ...] = typing.get_args(Name)
SCHEDULES: tuple[Schedule, ...] = typing.get_args(Schedule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Settings of the optimizer (`config.optimizer`).

    0 disables clip_norm, skip_norm, skip_limit, ema_decay and ema_rate.

    Attributes:
      name: "adamw" or "muon".
      trainable: regular expression of the paths of trained parameters; the rest is frozen.
      learning_rate: largest learning rate.
      schedule: course of the learning rate, one of `SCHEDULES`.
      warmup_steps: steps of the warm-up, from 0 or start_lr_ratio to the largest learning rate.
      start_lr_ratio: start of the warm-up of *_with_min_lr, as a share of learning_rate.
      min_lr_ratio: end of the decay of *_with_min_lr, as a share of learning_rate.
      num_cycles: cycles of cosine_with_restarts.
      power: power of polynomial.
      weight_decay: decoupled weight decay.
      b1, b2: decay rates of the moments of AdamW.
      eps: added to the root of AdamW's second moment.
      momentum: momentum of Muon.
      nesterov: use Nesterov's momentum in Muon, instead of plain momentum.
      newton_schulz_steps: iterations of Muon's orthogonalization.
      newton_schulz_dtype: dtype of these iterations, "bfloat16" or "float32".
      clip_norm: largest global norm of the gradients.
      skip_norm: global norm from which on a step does not change the weights.
      skip_limit: skipped steps in a row after which the run stops.
      ema_decay: decay of the EMA of the weights, over about 1 / (1 - decay) updates.
      ema_rate: instead, a power-law EMA over this share of all updates so far (EDM2).
      accumulate: microbatches per step (gradient accumulation).

    Raises:
      UserError: a value out of range.
    """

    name: Name = "adamw"
    trainable: ranges.Regex = ".*"
    learning_rate: Annotated[float, ranges.Range(0, 100, above=True)] = 1e-4
    schedule: Schedule = "constant"
    warmup_steps: ranges.CountOrZero = 0
    start_lr_ratio: ranges.Share = 0.0
    min_lr_ratio: ranges.Share = 0.0
    num_cycles: ranges.Count = 1
    power: Annotated[float, ranges.Range(0, 100)] = 1.0
    weight_decay: Annotated[float, ranges.Range(0, 100)] = 0.0
    b1: ranges.ShareBelowOne = 0.9
    b2: ranges.ShareBelowOne = 0.999
    eps: ranges.Epsilon = 1e-8
    momentum: ranges.ShareBelowOne = 0.95
    nesterov: bool = True
    newton_schulz_steps: Annotated[int, ranges.Range(1, 100)] = 5
    newton_schulz_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    clip_norm: ranges.PositiveOrZero = 0.0
    skip_norm: ranges.PositiveOrZero = 0.0
    skip_limit: ranges.CountOrZero = 0
    ema_decay: ranges.ShareBelowOne = 0.0
    ema_rate: ranges.ShareBelowOne = 0.0
    accumulate: ranges.Size = 1

    def __post_init__(self) -> None:
        ranges.check(self)
        if self.ema_decay and self.ema_rate:
            raise errors.UserError("config.optimizer.ema_decay and ema_rate are both set: choose one of them")

    @property
    def has_ema(self) -> bool:
        """True if a run keeps an EMA of its weights."""
        return bool(self.ema_decay or self.ema_rate)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CriticConfig(OptimizerConfig):
    """Settings of the optimizer of a critic (`config.critic`): a network that trains in turns with the model.

    Fields are those of `OptimizerConfig`, but without an EMA, and gradients accumulate over the microbatches of the
    model.

    Attributes:
      trainable: regular expression of the paths of the critic's trained parameters.
      updates: updates of the critic before each update of the model.

    Raises:
      UserError: a value out of range.
    """

    trainable: ranges.Regex = "critic/.*"
    updates: ranges.Count = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.has_ema:
            raise errors.UserError("config.critic.ema_decay or ema_rate is set, but a critic has no EMA: leave it out")
        if self.accumulate != 1:
            raise errors.UserError(
                f"config.critic.accumulate is {self.accumulate}, but a critic has the microbatches of "
                "config.optimizer.accumulate: leave it out"
            )


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Gradient transformation, learning rate as a function of the number of updates, and config.

    `critic` is the optimizer of a critic, whose config is a `CriticConfig`; None for a run without one.
    """

    transform: optax.GradientTransformation
    schedule: Callable[..., Any]
    config: OptimizerConfig
    critic: "Optimizer | None" = None

    @property
    def critic_updates(self) -> int:
        """Updates of the critic before each update of the model; 0 without a critic."""
        return 0 if self.critic is None else typing.cast(CriticConfig, self.critic.config).updates


def from_config(config: ml_collections.ConfigDict, *, steps: int) -> Optimizer:
    """Make the optimizer of a run of `steps` steps from the sections `optimizer` and, if there is one, `critic`.

    Raises:
      UserError: a key is unknown, of a wrong type or out of range.
    """
    optimizer = make_optimizer(run_config.section(OptimizerConfig, config.optimizer, "optimizer"), steps=steps)
    if "critic" not in config:
        return optimizer
    critic = run_config.section(CriticConfig, config.critic, "critic")
    return dataclasses.replace(optimizer, critic=make_optimizer(critic, steps=steps * critic.updates))


def make_schedule(config: OptimizerConfig, steps: int) -> Callable[..., Any]:
    """Return the learning rate as a function of the number of updates; decaying schedules end at `steps`.

    A run that is shorter than its warm-up ends within it.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    end = max(steps, warmup + 1)
    decay_steps = end - warmup
    if config.schedule == "constant":
        return optax.constant_schedule(peak)
    match config.schedule:
        case "constant_with_warmup":
            after = [optax.constant_schedule(peak)]
        case "linear":
            after = [optax.linear_schedule(peak, 0.0, decay_steps)]
        case "linear_with_min_lr" | "cosine_with_min_lr":
            cycle = schedules.Cycle(warmup, end, config.start_lr_ratio * peak, peak, config.min_lr_ratio * peak)
            return schedules.cycles([cycle], "linear" if config.schedule.startswith("linear") else "cosine")
        case "polynomial":
            after = [optax.polynomial_schedule(peak, 1e-7, config.power, decay_steps)]
        case "cosine_with_restarts":
            length = decay_steps / config.num_cycles
            # optax divides by the number of steps, which may be a fraction, although it declares an int.
            after = [optax.cosine_decay_schedule(peak, length)] * config.num_cycles  # type: ignore[arg-type]
            boundaries = [warmup + round(length * i) for i in range(config.num_cycles)]
            return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), *after], boundaries)
        case _:
            after = [optax.cosine_decay_schedule(peak, decay_steps)]
    return optax.join_schedules([optax.linear_schedule(0.0, peak, max(warmup, 1)), *after], [warmup])


def make_optimizer(config: OptimizerConfig, *, steps: int) -> Optimizer:
    """Make the optimizer of a run of `steps` steps.

    Clipping, skipping, EMA and gradient accumulation are not in the transformation: the train step needs their numbers.
    """
    schedule = make_schedule(config, steps)
    transform: optax.GradientTransformation
    if config.name == "adamw":
        transform = optax.adamw(schedule, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay)
    else:
        transform = muon.muon(
            schedule,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            nesterov=config.nesterov,
            betas=(config.b1, config.b2),
            eps=config.eps,
            steps=config.newton_schulz_steps,
            dtype=jnp.dtype(config.newton_schulz_dtype),
        )
    return Optimizer(transform=transform, schedule=schedule, config=config)
