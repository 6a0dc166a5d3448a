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
        "do_eval = True: python -m jworld.evaluate",
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
    assert found.config.steps == 188  # 3 epochs of 1000 in batches of 16
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
    with pytest.raises(UserError, match="dataset_name is 'custom', expected one of datacomp, vsr"):
        original.translate(original.read(written(tmp_path, dataset_name="custom")))
    with pytest.raises(UserError, match="is not a JSON config"):
        original.read(tmp_path / "absent.json")
