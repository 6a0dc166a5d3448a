"""scheduler_config.json of diffusers next to imported weights: noise schedule and sampling of a run, read and written.

A key that the file does not have keeps its published value. Values that our samplers do not support are refused.
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from conversion import hyperparameters, messages, searching
from conversion.hyperparameters import Field
from jworld.utils import config as run_config
from jworld.utils import errors

NAME, FOLDER = "scheduler_config.json", "scheduler"


def find(weights: pathlib.Path, name: str = NAME) -> pathlib.Path | None:
    """Return the scheduler's file next to a file of weights, or in the same pipeline folder; None without one."""
    folder = weights.parent
    places = [folder / name, folder / FOLDER / name]
    if folder.name == searching.TRANSFORMER:
        places.append(folder.parent / FOLDER / name)
    return next((place for place in places if place.is_file()), None)


def _choice(*values: str) -> Any:
    return lambda value: value if value in values else None


# CogVideoX and The Matrix.
_SCHEDULE = (
    Field("snr_shift_scale", "loss.snr_shift", hyperparameters.number),
    Field("beta_start", "loss.beta_start", hyperparameters.number),
    Field("beta_end", "loss.beta_end", hyperparameters.number),
    Field("beta_schedule", "loss.beta_schedule", _choice("scaled_linear", "linear")),
    Field("rescale_betas_zero_snr", "loss.zero_terminal_snr", hyperparameters.switch),
)
_SPACING = Field("timestep_spacing", "sample.rollout.spacing", _choice("trailing", "linspace", "leading"))
_SCHEDULE_FIXED = {
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "trained_betas": None,
}
_SOLVERS = {"CogVideoXDDIMScheduler": "ddim", "CogVideoXDPMScheduler": "dpm"}
#: Models that generate whole clips; those of streams have their own sampler and spacing.
_CLIPS = ("stage1", "stage2")


def read_cogvideox(values: Mapping[str, Any], where: str, variant: str) -> dict[str, Any]:
    """Return values by dotted key of a run's config; `variant` is a stage of The Matrix."""
    found = hyperparameters.read(values, (*_SCHEDULE, _SPACING), _SCHEDULE_FIXED, where)
    if variant not in _CLIPS:
        found.pop(_SPACING.ours, None)
    elif (name := values.get("_class_name")) in _SOLVERS:
        found["sample.rollout.solver"] = _SOLVERS[name]
    return found


#: File of the published CogVideoX-2B.
COGVIDEOX = {
    "_class_name": "CogVideoXDDIMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "rescale_betas_zero_snr": True,
    "snr_shift_scale": 3.0,
    "timestep_spacing": "trailing",
    **_SCHEDULE_FIXED,
}


def write_cogvideox(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return the entries that a run's config determines; a stream is sampled by its own program's class."""
    sample = config.sample.rollout
    values = {field.theirs: run_config.value_at(config, field.ours) for field in _SCHEDULE}
    if sample.get("mode") != "stream":
        values["timestep_spacing"] = sample.get("spacing")
        values["_class_name"] = next(
            (name for name, solver in _SOLVERS.items() if solver == sample.get("solver")), None
        )
    return {key: value for key, value in values.items() if value is not None}


_COSMOS = (
    Field("sigma_min", "sample.rollout.lowest", hyperparameters.number),
    Field("sigma_max", "sample.rollout.highest", hyperparameters.number),
)
_COSMOS_FIXED = {"num_train_timesteps": 1000, "sigma_data": 1.0, "use_karras_sigmas": True}
_FLOW = "FlowMatchEulerDiscreteScheduler"
#: File of the published Video2World models.
COSMOS = {
    "_class_name": _FLOW,
    "final_sigmas_type": "sigma_min",
    "shift": 1.0,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
    **_COSMOS_FIXED,
}


def read_cosmos(values: Mapping[str, Any], where: str, variant: str) -> dict[str, Any]:
    """Return values by dotted key of a run's config."""
    return hyperparameters.read(values, _COSMOS, _COSMOS_FIXED, where)


def write_cosmos(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return the entries that a run's config determines."""
    values = {field.theirs: run_config.value_at(config, field.ours) for field in _COSMOS}
    return {key: value for key, value in values.items() if value is not None}


_HUNYUAN = (Field("shift", "sample.rollout.shift", hyperparameters.number),)
_HUNYUAN_FIXED = {"num_train_timesteps": 1000, "use_dynamic_shifting": False}
#: File of HunyuanVideo-1.5 in diffusers.
HUNYUAN = {"_class_name": _FLOW, "shift": 5.0, **_HUNYUAN_FIXED}


def read_hunyuan(values: Mapping[str, Any], where: str, variant: str) -> dict[str, Any]:
    """Return values by dotted key of a run's config; action models are sampled as their own program does."""
    return hyperparameters.read(values, _HUNYUAN, _HUNYUAN_FIXED, where) if variant == "base" else {}


def write_hunyuan(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return the entries that a run's config determines."""
    shift = run_config.value_at(config, "sample.rollout.shift")
    return {} if shift is None else {"shift": shift}


def apply(
    config: ml_collections.ConfigDict, found: Mapping[str, Any], where: str, recipe: str | None
) -> ml_collections.ConfigDict:
    """Set the values of a scheduler's file in an unlocked config.

    Raises:
      UserError: a recipe that the user named has other values.
    """
    wrong = []
    for key, value in found.items():
        *parents, name = key.split(".")
        section = config
        for parent in parents:
            section = section[parent]
        if recipe is not None and name in section and section[name] != value:
            wrong.append(f"{key} is {messages.shown(section[name])} by --config={recipe}, but {messages.shown(value)}")
        section[name] = value
    if wrong:
        raise errors.UserError(f"{'; '.join(wrong)} by {where}: correct the wrong one, or leave --config out")
    return config
