"""Translation of the original's training configs (JSON, python/theworld/config.py) into recipes."""

import dataclasses
import pathlib
import pprint
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from jworld.utils import config as run_config
from jworld.utils import errors, files

RECIPE = "configs/theworld.py"
#: Every key of the original with its default.
DEFAULTS: dict[str, Any] = {
    "model_name": "google/gemma-3-4b-it",
    "cosmos_model_name": "nvidia/Cosmos-Predict2-2B-Video2World",
    "enable_world": True,
    "world_projection_mode": "spatial",
    "projection_architecture": "mlp",
    "num_world_steps": 0,
    "max_world_steps": 16,
    "freeze_gemma_vision": True,
    "freeze_gemma_language": True,
    "freeze_cosmos_vae": True,
    "learning_rate": 1e-4,
    "batch_size": 4,
    "gradient_accumulation_steps": 4,
    "num_epochs": 3,
    "max_steps": None,
    "warmup_steps": 100,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "use_gradient_checkpointing": False,
    "mixed_precision": "bf16",
    "save_safetensors": True,
    "output_dir": "./checkpoints",
    "save_steps": 500,
    "save_total_limit": 3,
    "resume_from_checkpoint": None,
    "eval_steps": 500,
    "eval_batch_size": None,
    "do_eval": False,
    "logging_steps": 10,
    "log_to_wandb": False,
    "wandb_project": None,
    "wandb_run_name": None,
    "log_to_tensorboard": True,
    "max_seq_length": 2048,
    "num_workers": 4,
    "pin_memory": True,
    "persistent_workers": True,
    "prefetch_factor": 2,
    "train_dataset_path": None,
    "eval_dataset_path": None,
    "dataset_name": "custom",
    "num_samples": None,
    "streaming": False,
    "question_template": "Describe this image in detail.",
    "image_folder": None,
    "draw_bboxes": False,
    "hf_token": None,
    "push_to_hub": False,
    "hub_model_id": None,
    "hub_strategy": "every_save",
    "hub_private_repo": False,
}

#: Notes on keys without an effect, printed if their value differs from the default.
_NOTES = {
    "num_world_steps": "the original does not use it; here model.world.predictor predicts the steps",
    "max_world_steps": "the original does not use it",
    "save_safetensors": "python -m conversion export writes safetensors",
    "output_dir": "give --workdir",
    "eval_batch_size": "held-out batches have config.global_batch rows",
    "wandb_project": "the project is jworld, the run is named after the workdir",
    "wandb_run_name": "the project is jworld, the run is named after the workdir",
    "log_to_tensorboard": "TensorBoard is always on",
    "pin_memory": "there is no such setting",
    "persistent_workers": "there is no such setting",
    "prefetch_factor": "set data.prefetch, in batches",
    "eval_dataset_path": "data.conversations.val_share of the training set is held out",
    "streaming": "conversations are always read from disk during training",
    "hf_token": "set the environment variable HF_TOKEN",
    "model_name": "import those weights and set init_from to their folder",
    "cosmos_model_name": "import those weights and set init_from to their folder",
}
_FORMATS = {
    "datacomp": "captions",
    "vsr": "vsr",
    "llava_pretrain": "llava",
    "spatial_rgpt": "spatial_rgpt",
    # The original has no reader for it.
    "custom": "llava",
}
#: Key of a JSON config -> its values.
_CHOICES = {
    "mixed_precision": ("bf16", "fp16", "no"),
    "hub_strategy": ("end", "every_save", "checkpoint"),
    "dataset_name": tuple(_FORMATS),
}
#: Keys of the original's evaluation configs.
_EVALUATION = ("tasks", "task", "max_new_tokens")


@dataclasses.dataclass(frozen=True)
class Translation:
    """A recipe's config, and notes on it for the user."""

    config: ml_collections.ConfigDict
    notes: list[str]


def read(path: pathlib.Path) -> dict[str, Any]:
    """Read all keys of a JSON config, with the original's defaults for keys that are absent or null.

    Raises:
      UserError: the file is absent, is not a JSON object, or has a key, type or value that the original does not have.
    """
    values = files.read_json(path, name=f"--from-json: {path}")
    given = {key: value for key, value in values.items() if not key.startswith("_")}
    if any(key in given for key in _EVALUATION):
        raise errors.UserError(
            f"--from-json: {path} is a config of an evaluation, expected one of a training: measure the model with "
            "python -m jworld.evaluate --benchmark blink"
        )
    if unknown := sorted(given.keys() - DEFAULTS.keys()):
        raise errors.UserError(f"--from-json: {path}: the original has no key {unknown[0]!r}: correct it")
    for key, value in given.items():
        default = DEFAULTS[key]
        if value is None:
            continue
        number = isinstance(default, int | float) and not isinstance(default, bool)
        fits = (
            isinstance(value, int | float) and not isinstance(value, bool) if number else type(value) is type(default)
        )
        if default is not None and not fits:
            raise errors.UserError(
                f"--from-json: {path}: {key} is {value!r}, expected a {type(default).__name__} such as {default!r}: "
                "correct it"
            )
        if key in _CHOICES and value not in _CHOICES[key]:
            expected = ", ".join(_CHOICES[key])
            raise errors.UserError(f"--from-json: {path}: {key} is {value!r}, expected one of {expected}: correct it")
    return {**DEFAULTS, **{key: value for key, value in given.items() if value is not None}}


def translate(values: Mapping[str, Any]) -> Translation:
    """Return a recipe that trains on one device as the original does with these keys.

    Raises:
      UserError: the original could not train with these keys.
    """
    config = run_config.load_recipe(f"{RECIPE}:projection")
    notes = [f"{key} = {values[key]!r}: {note}" for key, note in _NOTES.items() if values[key] != DEFAULTS[key]]
    with config.unlocked():
        _model(config, values, notes)
        _optimizer(config, values, notes)
        _data(config, values, notes)
        config.checkpoint.interval = values["save_steps"]
        config.checkpoint.max_to_keep = values["save_total_limit"]
        config.log.interval = values["logging_steps"]
        config.log.wandb = "online" if values["log_to_wandb"] else "off"
        if values["do_eval"]:
            config.evaluation = {"interval": values["eval_steps"], "batches": 8}
        else:
            notes += _given(values, ("eval_steps",), "do_eval is false; python -m jworld.evaluate measures a run")
        _hub(config, values, notes)
        if values["resume_from_checkpoint"]:
            config.init_from = values["resume_from_checkpoint"]
            notes.append("resume_from_checkpoint: import those weights first and set init_from to their folder")
    return Translation(config, notes)


def _given(values: Mapping[str, Any], keys: Sequence[str], note: str) -> list[str]:
    """Return a note on each of the keys that has not its default."""
    return [f"{key} = {values[key]!r}: {note}" for key in keys if values[key] != DEFAULTS[key]]


def _hub(config: ml_collections.ConfigDict, values: Mapping[str, Any], notes: list[str]) -> None:
    if not values["push_to_hub"]:
        keys = ("hub_model_id", "hub_strategy", "hub_private_repo")
        notes += _given(values, keys, "push_to_hub is false, so nothing is uploaded")
        return
    if values["hub_model_id"] is None:
        notes.append("push_to_hub = True: hub_model_id is absent, so nothing is uploaded: set checkpoint.hub.repo")
    if values["hub_strategy"] == "checkpoint":
        notes.append("hub_strategy = 'checkpoint': every checkpoint is uploaded, as with 'every_save'")
    config.checkpoint.hub.repo = values["hub_model_id"] or ""
    config.checkpoint.hub.strategy = "end" if values["hub_strategy"] == "end" else "every_save"
    config.checkpoint.hub.private = values["hub_private_repo"]


def _model(config: ml_collections.ConfigDict, values: Mapping[str, Any], notes: list[str]) -> None:
    if not values["use_gradient_checkpointing"]:
        notes.append("use_gradient_checkpointing = False: model.remat is on; set it to 'none' if the memory suffices")
    if values["mixed_precision"] == "no":
        config.model.dtype, config.model.frozen_dtype = "float32", "float32"
    elif values["mixed_precision"] == "fp16":
        notes.append("mixed_precision = 'fp16': bfloat16 takes its place, which needs no scaling of the loss")
    parts = {
        "world": values["enable_world"],
        "vision": not values["freeze_gemma_vision"],
        "projector": not values["freeze_gemma_vision"],
        "language": not values["freeze_gemma_language"],
        # The decoder has no gradient.
        "autoencoder/(encoder|moments)": not values["freeze_cosmos_vae"],
    }
    trained = [part for part, is_trained in parts.items() if is_trained]
    if not trained:
        raise errors.UserError("--from-json: everything is frozen and there is no world: set a freeze_ key to false")
    config.optimizer.trainable = f"({'|'.join(trained)})/.*"
    if not values["enable_world"]:
        if not values["freeze_cosmos_vae"]:
            raise errors.UserError("--from-json: enable_world is false, so freeze_cosmos_vae must be true")
        keys = ("world_projection_mode", "projection_architecture")
        notes += _given(values, keys, "enable_world is false")
        config.model.world = None
        config.data.clip.world_size = 0
        config.data.clip.labels = "original"
        return
    config.model.world.compat = "original"
    config.model.world.layout = values["world_projection_mode"]
    config.model.world.architecture = values["projection_architecture"]
    config.model.world.steps = values["num_world_steps"]


def _optimizer(config: ml_collections.ConfigDict, values: Mapping[str, Any], notes: list[str]) -> None:
    config.global_batch = values["batch_size"] * values["gradient_accumulation_steps"]
    config.optimizer.accumulate = values["gradient_accumulation_steps"]
    config.optimizer.learning_rate = float(values["learning_rate"])
    config.optimizer.weight_decay = float(values["weight_decay"])
    config.optimizer.warmup_steps = values["warmup_steps"]
    config.optimizer.clip_norm = float(values["max_grad_norm"])
    notes.append("global_batch is for one device: multiply it by the number of devices")
    if values["max_steps"] is not None:
        config.steps = values["max_steps"]
        notes += _given(values, ("num_epochs",), "max_steps is set")
    else:
        config.steps, config.epochs = 0, values["num_epochs"]


def _data(config: ml_collections.ConfigDict, values: Mapping[str, Any], notes: list[str]) -> None:
    name = values["dataset_name"]
    if name == "custom":
        notes.append("dataset_name = 'custom': the original has no reader for it, here it is the format llava")
    if name not in ("datacomp", "vsr"):
        notes += _given(values, ("question_template",), f"{name} has its own questions")
    if name != "spatial_rgpt":
        notes += _given(values, ("draw_bboxes",), f"{name} has no boxes")
    config.data.records = f"data/{name}/conversations"
    config.data.threads = max(1, values["num_workers"])
    config.data.conversations = {
        "format": _FORMATS[name],
        "path": values["train_dataset_path"] or "",
        "images": values["image_folder"] or "",
        "question": values["question_template"],
        "draw_boxes": values["draw_bboxes"],
        "limit": values["num_samples"] or 0,
        "val_share": 0.01,
    }
    if not values["train_dataset_path"] or not pathlib.Path(values["train_dataset_path"]).suffix:
        notes.append(f"data.conversations.path: set it to the files of {name} on this machine")
    longest = values["max_seq_length"]
    config.data.clip.lengths = (*(length for length in config.data.clip.lengths if length < longest), longest)


def recipe(path: pathlib.Path) -> str:
    """Return the text of a recipe that trains as the original does with a JSON config."""
    found = translate(read(path))
    values = pprint.pformat(found.config.to_dict(), width=110, sort_dicts=False)
    notes = "\n".join(f"  {note}" for note in found.notes)
    return (
        f'"""TheWorld with the training config {path.name} of the original.\n\n{notes}\n\n'
        "model.world.compat = 'original' is for published checkpoints; use '' for new models.\n"
        '"""\n\nimport ml_collections\n\n\n'
        'def get_config(variant: str = "") -> ml_collections.ConfigDict:\n'
        f"    return ml_collections.ConfigDict(VALUES).lock()\n\n\nVALUES = {values}\n"
    )
