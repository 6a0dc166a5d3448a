"""Keys and sections of a config that systems share: their types, bounds and meanings."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import ml_collections

from jworld.data.recording import recorder
from jworld.encoders import choices
from jworld.evaluation import settings
from jworld.training import emergency, hub, metrics, optimizers
from jworld.utils import config as run_config
from jworld.utils import errors, ranges

_Epochs = Annotated[float, ranges.Range(0, 1e6)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopLevel:
    """Keys at the top level that a recipe need not list.

    Attributes:
      epochs: passes through the training records, in place of `steps`, which is then 0; 0: `steps` counts.
    """

    epochs: _Epochs = 0.0


#: Sections that do not belong to a system; "" is the top level.
SHARED: Mapping[str, type] = {
    "": TopLevel,
    "optimizer": optimizers.OptimizerConfig,
    "log": metrics.LogConfig,
    "checkpoint.hub": hub.HubConfig,
    "checkpoint.emergency": emergency.EmergencyConfig,
    "data.recording": recorder.RecordingConfig,
    "sample": settings.SamplesConfig,
    "sample.encoders": choices.EncodersConfig,
    "evaluation": settings.EvaluationConfig,
}
#: Keys that are not fields of a dataclass: type and meaning.
PLAIN: Mapping[str, tuple[Any, str]] = {
    "system": (str, "the system to train"),
    "seed": (ranges.Seed, "random seed of weights, noise and the order of the data"),
    "steps": (ranges.CountOrZero, "number of training steps"),
    "epochs": (_Epochs, "passes through the training records, in place of steps"),
    "global_batch": (ranges.Size, "examples per step, over all devices and microbatches"),
    "init_from": (str, "folder of a run, or of released or imported weights, to start from; empty: from scratch"),
    "mesh.data": (ranges.MeshAxis, "replicas of the weights; -1: as many as the devices allow"),
    "mesh.fsdp": (
        ranges.MeshAxis,
        "devices that share the weights and the optimizer's state; -1: as many as the devices allow",
    ),
    "mesh.sequence": (
        ranges.MeshAxis,
        "devices that share the tokens of one example; -1: as many as the devices allow",
    ),
    "model.family": (str, "design of the network"),
    "model.frozen_dtype": (str | None, "dtype of the parameters that do not train"),
    "data.records": (str, "folder of the training records"),
    "data.tokenizer": (ranges.Path, "folder of the tokenizer"),
    "data.threads": (Annotated[int, ranges.Range(1, 1024)], "threads that read and transform examples"),
    "data.prefetch": (
        Annotated[int, ranges.Range(1, 100_000)],
        "batches that are prepared ahead of the training step",
    ),
    "checkpoint.interval": (ranges.Count, "steps between two checkpoints"),
    "checkpoint.max_to_keep": (ranges.Count, "number of newest checkpoints to keep"),
    "checkpoint.step": (
        Annotated[int, ranges.Range(1, ranges.LARGEST, also=(-1,))],
        "checkpoint to resume from; -1: the newest",
    ),
    "sample.actions": (str, "actions of the sample after training, in the notation of the system"),
    "sample.windows": (Annotated[int, ranges.Range(1, 100_000)], "windows of the sample after training"),
    "sample.questions": (
        Annotated[int, ranges.Range(1, 100_000)],
        "held-out questions that the sample after training answers",
    ),
    "sample.seed": (ranges.Seed, "random seed of the sample after training"),
}
#: Keys without which nothing trains.
REQUIRED = (
    *("seed", "steps", "global_batch", "init_from", "data.records", "data.threads", "data.prefetch"),
    *("checkpoint.interval", "checkpoint.max_to_keep", "checkpoint.step"),
)
#: Keys at the top level that are single values; all others are sections.
_VALUES = ("system", "seed", "steps", "global_batch", "init_from", "epochs")


def check(config: ml_collections.ConfigDict) -> None:
    """Check the keys of `PLAIN` and the sections of `SHARED` that a config has.

    Raises:
      UserError: a value is of another type or outside its bounds, or a section is a single value.
    """
    for name in config:
        section = config[name]
        if name not in _VALUES and not isinstance(section, ml_collections.ConfigDict):
            raise errors.UserError(f"config.{name}: found {ranges.found(section)}, expected a section with keys")
    for name in config.mesh:
        if f"mesh.{name}" not in PLAIN:
            raise errors.UserError(f"config.mesh.{name}: unknown key, expected data, fsdp or sequence")
    for key, (hint, _) in PLAIN.items():
        if _has(config, key):
            run_config.checked(key, run_config.value_at(config, key), hint)
    for name, cls in SHARED.items():
        section = run_config.value_at(config, name) if name else config
        # The top level and `sample` have further keys.
        if section is not None and name not in ("", "sample"):
            run_config.section(cls, section, name)
    samples(config)


def samples(config: ml_collections.ConfigDict) -> settings.SamplesConfig:
    """Return the part of `config.sample` that all systems share."""
    names = [field.name for field in dataclasses.fields(settings.SamplesConfig)]
    shared = {name: config.sample[name] for name in names if name in config.sample}
    return run_config.section(settings.SamplesConfig, shared, "sample")


def check_required(config: ml_collections.ConfigDict) -> None:
    """Raise a `UserError` if a key is missing without which nothing trains."""
    if missing := [key for key in REQUIRED if not _has(config, key)]:
        raise errors.UserError(f"config.{missing[0]} is missing: {PLAIN[missing[0]][1]}")


def _has(config: ml_collections.ConfigDict, key: str) -> bool:
    section, _, name = key.rpartition(".")
    node = run_config.value_at(config, section) if section else config
    return isinstance(node, ml_collections.ConfigDict) and name in node
