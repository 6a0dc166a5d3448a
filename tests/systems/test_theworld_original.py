"""Translation of the original's training configs into recipes."""

import json
import pathlib
from typing import Any

import pytest

from jworld import systems, train
from jworld.systems.theworld import original
from jworld.systems.training_job import TrainingJob
from jworld.training import state as train_state
from jworld.utils import config as run_config
from jworld.utils.errors import UserError


def written(folder: pathlib.Path, **values: Any) -> pathlib.Path:
    path = folder / "x.json"
    path.write_text(json.dumps({"_comment": "?", "dataset_name": "llava_pretrain", **values}))
    return path


def trains(pattern: str) -> list[str]:
    """Return the parts of a model that a pattern trains."""
    paths = {
        "world": ("world", "output", "kernel"),
        "vision": ("vision", "blocks", "kernel"),
        "projector": ("projector", "kernel"),
        "language": ("language", "embedding"),
        "encoder": ("autoencoder", "encoder", "conv_in", "kernel"),
        "decoder": ("autoencoder", "decoder", "conv_in", "kernel"),
    }
    is_trained = train_state.path_filter(pattern)
    return [name for name, path in paths.items() if is_trained(path, None)]


def test_a_printed_recipe_trains_as_the_original(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(
        tmp_path,
        dataset_name="spatial_rgpt",
        world_projection_mode="channel",
        projection_architecture="mlp_no_final_gelu",
        freeze_gemma_vision=False,
        freeze_gemma_language=False,
        freeze_cosmos_vae=False,
        batch_size=2,
        gradient_accumulation_steps=3,
        max_steps=700,
        num_epochs=2,
        train_dataset_path="/data/rows.json",
        image_folder="/data/images",
        draw_bboxes=True,
        max_seq_length=1500,
        save_steps=50,
        log_to_wandb=True,
        wandb_project="mine",
        push_to_hub=True,
        hub_model_id="me/model",
        do_eval=True,
    )
    train.main(["--from-json", str(path)])
    printed = capsys.readouterr().out
    for note in (
        "num_epochs = 2: max_steps is set",
        "wandb_project = 'mine'",
        "multiply it by the number of devices",
    ):
        assert note in printed
    (tmp_path / "recipe.py").write_text(printed)
    config = run_config.load_recipe(str(tmp_path / "recipe.py"))
    system = systems.create(config)
    assert (config.steps, config.global_batch, config.optimizer.accumulate) == (700, 6, 3)
    assert system.model_config.world.compat == "original"
    assert system.model_config.world.tokens == 16
    assert system.data.set.draw_boxes
    assert system.clip.lengths == (512, 1024, 1500)
    assert trains(config.optimizer.trainable) == ["world", "vision", "projector", "language", "encoder"]
    assert TrainingJob.from_config(config, tmp_path).hub.repo == "me/model"
    assert (config.checkpoint.interval, config.log.wandb) == (50, "online")
    assert TrainingJob.from_config(config, tmp_path).evaluation.interval == 500


def test_world_steps_are_translated(tmp_path: pathlib.Path) -> None:
    found = original.translate(original.read(written(tmp_path, num_world_steps=4, max_steps=10)))
    assert found.config.model.world.steps == 4
    assert any("num_world_steps = 4" in note and "model.world.predictor" in note for note in found.notes)
    with found.config.unlocked():
        found.config.model.predictor = {}
    assert systems.create(found.config).model_config.world.tokens == 5 * 4096
    assert trains(found.config.optimizer.trainable) == ["world"]


def test_frozen_parts(tmp_path: pathlib.Path) -> None:
    found = original.translate(original.read(written(tmp_path, num_samples=1000)))
    assert trains(found.config.optimizer.trainable) == ["world"]
    assert (found.config.epochs, found.config.steps, found.config.data.conversations.limit) == (3, 0, 1000)
    # 3 epochs of 1000 rows in batches of 16.
    assert TrainingJob.from_config(found.config, tmp_path).counted(1000).config.steps == 187
    values = original.read(written(tmp_path, enable_world=False, freeze_gemma_vision=False))
    config = original.translate(values).config
    assert trains(config.optimizer.trainable) == ["vision", "projector"]
    assert systems.create(config).model_config.world is None
    with pytest.raises(UserError, match="everything is frozen"):
        original.translate({**values, "freeze_gemma_vision": True})
    with pytest.raises(UserError, match="freeze_cosmos_vae must be true"):
        original.translate({**values, "freeze_cosmos_vae": False})


def test_mistakes(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="the original has no key 'learning_rat'"):
        original.read(written(tmp_path, learning_rat=1))
    with pytest.raises(UserError, match="batch_size is 'two'"):
        original.read(written(tmp_path, batch_size="two"))
    with pytest.raises(UserError, match="dataset_name is 'coco', expected one of datacomp, vsr"):
        original.read(written(tmp_path, dataset_name="coco"))
    with pytest.raises(UserError, match="mixed_precision is 'int8', expected one of bf16, fp16, no"):
        original.read(written(tmp_path, mixed_precision="int8"))
    with pytest.raises(UserError, match="is a config of an evaluation, expected one of a training"):
        original.read(written(tmp_path, tasks=["Relative_Depth"]))
    with pytest.raises(UserError, match="is absent: correct it"):
        original.read(tmp_path / "absent.json")


#: What the configs of the training sets differ in from the original's defaults.
SPATIAL = {
    "dataset_name": "spatial_rgpt",
    "train_dataset_path": "/data/rows.json",
    "image_folder": "/data/images",
    "draw_bboxes": True,
    "batch_size": 2,
    "gradient_accumulation_steps": 1,
    "num_epochs": 1,
    "warmup_steps": 50,
    "save_steps": 1000,
    "eval_batch_size": 8,
    "wandb_project": "mine",
    "push_to_hub": True,
    "hub_model_id": "me/model",
}
CHANNEL = {**SPATIAL, "world_projection_mode": "channel"}
FIXED = {**CHANNEL, "projection_architecture": "mlp_no_final_gelu"}
ALL = dict.fromkeys(("freeze_gemma_vision", "freeze_gemma_language", "freeze_cosmos_vae"), False)
#: Without held-out measurements and uploads, spelled as null.
NULLS = dict.fromkeys(("eval_steps", "eval_batch_size", "hub_strategy", "hub_private_repo", "max_steps"))
PROFILE = {**SPATIAL, **NULLS, "push_to_hub": False, "hub_model_id": None, "num_samples": 2, "batch_size": 1}
SMALL = {"gradient_accumulation_steps": 1, "num_epochs": 1, "warmup_steps": 0, "num_samples": 50}
LLAVA = {"dataset_name": "llava_pretrain", "train_dataset_path": "owner/llava", "gradient_accumulation_steps": 8}
#: Stand-ins of the published configs: the same keys with values of the same kinds, and what they train.
PUBLISHED: dict[str, tuple[dict[str, Any], list[str]]] = {
    "default": ({"dataset_name": "custom", "max_steps": None}, ["world"]),
    "datacomp_test": ({"dataset_name": "datacomp", **SMALL, "log_to_wandb": True}, ["world"]),
    "datacomp_production": ({"dataset_name": "datacomp", "num_epochs": 1, "hub_private_repo": True}, ["world"]),
    "llava_test": ({**LLAVA, **SMALL, "use_gradient_checkpointing": True, "do_eval": True, "eval_steps": 5}, ["world"]),
    "llava_full": ({**LLAVA, **NULLS, "num_epochs": 2}, ["world"]),
    "cc3m_align": ({**LLAVA, "learning_rate": 5e-05, "question_template": "Describe it simply."}, ["world"]),
    "profile": (PROFILE, ["world"]),
    "profile_gemma": (
        {**PROFILE, **ALL, "freeze_cosmos_vae": True, "enable_world": False},
        ["vision", "projector", "language"],
    ),
    "profile_full": ({**PROFILE, **ALL}, ["world", "vision", "projector", "language", "encoder"]),
    "profile_projection": (PROFILE, ["world"]),
    "smoke": ({"dataset_name": "datacomp", **NULLS, **SMALL, "num_samples": 2, "save_steps": 1}, ["world"]),
    "spatial": (SPATIAL, ["world"]),
    "spatial_test": ({**SPATIAL, **SMALL, "push_to_hub": False}, ["world"]),
    "spatial_smoke": ({**SPATIAL, **SMALL, "num_workers": 0, "log_to_tensorboard": False}, ["world"]),
    "channel": (CHANNEL, ["world"]),
    "channel_vae": ({**CHANNEL, "freeze_cosmos_vae": False}, ["world", "encoder"]),
    "channel_all": ({**CHANNEL, **ALL}, ["world", "vision", "projector", "language", "encoder"]),
    "all_fixed": ({**FIXED, **ALL}, ["world", "vision", "projector", "language", "encoder"]),
    "all_not_it": (
        {**FIXED, **ALL, "model_name": "google/gemma-3-4b"},
        ["world", "vision", "projector", "language", "encoder"],
    ),
    "projection_fixed": (FIXED, ["world"]),
    "lm_fixed": ({**FIXED, "freeze_gemma_language": False}, ["world", "language"]),
    "from_cc3m": ({**CHANNEL, "resume_from_checkpoint": "./checkpoints/a"}, ["world"]),
    "from_cc3m_lm": (
        {**CHANNEL, "resume_from_checkpoint": "./checkpoints/b", "freeze_gemma_language": False},
        ["world", "language"],
    ),
    "gemma_only": (
        {**SPATIAL, **ALL, "freeze_cosmos_vae": True, "enable_world": False},
        ["vision", "projector", "language"],
    ),
    "gemma_vision": ({**SPATIAL, "freeze_gemma_vision": False, "enable_world": False}, ["vision", "projector"]),
    "vsr": (
        {
            "dataset_name": "vsr",
            "question_template": "Statement: {caption}\nAnswer (only '0' or '1'):",
            "image_folder": "/data/images",
            "use_gradient_checkpointing": True,
            "gradient_accumulation_steps": 1,
        },
        ["world"],
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_config_converts(name: str, tmp_path: pathlib.Path) -> None:
    values, trained = PUBLISHED[name]
    text = original.recipe(written(tmp_path, **values))
    (tmp_path / "recipe.py").write_text(text)
    config = run_config.load_recipe(str(tmp_path / "recipe.py"))
    job = TrainingJob.from_config(config, tmp_path / "run")
    assert trains(config.optimizer.trainable) == trained
    assert (job.system.model_config.world is None) == (values.get("enable_world") is False)
    # Whatever differs from the defaults and has no effect is named.
    notes = text.split('"""')[1]
    for key in ("eval_batch_size", "wandb_project", "model_name", "log_to_tensorboard", "output_dir"):
        assert (f"{key} = " in notes) == (values.get(key) is not None)
    wanted = values.get("hub_model_id") or values.get("hub_private_repo")
    assert ("nothing is uploaded" in notes) == bool(wanted and not values.get("push_to_hub"))


@pytest.mark.parametrize(
    ("values", "trained"),
    [
        ({"freeze_gemma_vision": False}, ["world", "vision", "projector"]),
        ({"freeze_gemma_language": False, "use_gradient_checkpointing": True}, ["world", "language"]),
        (
            {
                "model_name": "google/gemma-3-4b-it",
                "enable_world": True,
                "learning_rate": 0.0001,
                "batch_size": 4,
                "gradient_accumulation_steps": 4,
                "num_epochs": 3,
                "output_dir": "./checkpoints",
                "push_to_hub": False,
            },
            ["world"],
        ),
    ],
)
def test_snippets_of_the_training_page(values: dict[str, Any], trained: list[str], tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(values))
    found = original.translate(original.read(tmp_path / "x.json"))
    assert trains(found.config.optimizer.trainable) == trained
    assert (found.config.epochs, found.config.global_batch) == (3, 16)
    assert found.config.data.conversations.format == "llava"
    assert any("dataset_name = 'custom'" in note for note in found.notes)


def test_settings_that_would_be_ignored_are_said(tmp_path: pathlib.Path) -> None:
    values = {"push_to_hub": True, "mixed_precision": "fp16", "use_gradient_checkpointing": False, "draw_bboxes": True}
    notes = original.translate(original.read(written(tmp_path, **values))).notes
    for key in (
        "push_to_hub = True: hub_model_id is absent",
        "mixed_precision = 'fp16': bfloat16",
        "draw_bboxes = True",
    ):
        assert any(note.startswith(key) for note in notes)
    assert any(note.startswith("use_gradient_checkpointing = False: model.remat is on") for note in notes)
