"""Configs of commands: every key can be set, and every key is listed with its meaning."""

import pathlib
import runpy

import pytest

from jworld import config as config_command
from jworld import systems
from jworld.systems import recipes
from jworld.utils import config as run_config
from jworld.utils import errors

FILES = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))
NAMES = [f"configs/{file.name}:{variant}" for file in FILES for variant in runpy.run_path(str(file))["VARIANTS"]]


@pytest.mark.parametrize("name", NAMES)
def test_every_key_has_a_meaning(name: str) -> None:
    config = run_config.load_recipe(name)
    found = {key.name: key for key in recipes.keys(config, config, {})}
    assert [key.name for key in found.values() if not key.meaning] == []
    assert {"seed", "mesh.fsdp", "optimizer.eps", "checkpoint.hub.repo", "log.interval"} <= found.keys()
    # What the recipe lists is there with its value.
    for name in ("steps", "optimizer.learning_rate"):
        section, _, key = name.rpartition(".")
        assert found[name].value == (config[section] if section else config)[key]
        assert found[name].source == "recipe"


def test_either_length_replaces_the_other() -> None:
    config = run_config.load_recipe("configs/ar_mem.py")
    by_epochs = recipes.change(config, {"epochs": "2.5"})
    assert (by_epochs.steps, by_epochs.epochs) == (0, 2.5)
    by_steps = recipes.change(by_epochs, {"steps": "7"})
    assert (by_steps.steps, by_steps.epochs) == (7, 0.0)
    both = recipes.change(config, {"steps": "7", "epochs": "2"})
    assert (both.steps, both.epochs) == (7, 2.0)


def test_keys_of_sections_that_no_recipe_lists() -> None:
    config = run_config.load_recipe("configs/autoencoder.py")
    changes = {"evaluation.interval": "5", "sample.interval": "4", "sample.encoders.dtype": "float32"}
    changed = recipes.change(config, changes)
    assert (changed.evaluation.interval, changed.sample.interval) == (5, 4)
    with pytest.raises(errors.UserError, match=r"config\.evaluation\.intervall: .* did you mean 'interval'"):
        recipes.change(config, {"evaluation.intervall": "5"})


def test_keys_without_the_run_that_they_name(capsys: pytest.CaptureFixture[str]) -> None:
    """The predictor of world steps is read from a run, which need not exist for the list of keys."""
    command = ["--config=configs/theworld.py:tiny_steps", "--config.model.world.predictor=runs/none"]
    config_command.main([*command, "--config.model.world.steps=3"])
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
    assert rows["model.world.steps"][:2] == ["3", "command"]
    assert rows["model.world.predictor"][0] == "runs/none"
    assert "model.predictor.width" not in rows


def test_keys_that_the_recipe_does_not_list() -> None:
    config = run_config.load_recipe("configs/ar_mem.py")
    assert "logit_mean" not in config.loss
    assert "hub" not in config.checkpoint
    changes = {"loss.logit_mean": "2", "checkpoint.hub.repo": "a/b", "model.lora.targets": "blocks/.*", "seed": "5"}
    changes |= {"model.lora.rank": "2", "optimizer.trainable": ".*lora.*"}
    changed = recipes.change(config, changes)
    assert systems.create(changed).sections()["loss"].logit_mean == 2.0
    assert (changed.checkpoint.hub.repo, changed.seed) == ("a/b", 5)
    assert changed.model.lora.to_dict() == {"targets": ("blocks/.*",), "rank": 2}
    found = {key.name: key for key in recipes.keys(changed, config, changes)}
    assert (found["loss.logit_mean"].value, found["loss.logit_mean"].source) == (2.0, "command line")
    assert (found["loss.mode_scale"].source, found["loss.shift"].source) == ("default", "recipe")
    assert found["model.lora.alpha"].value == 16.0


def test_types_of_sections_that_only_the_changes_make_right() -> None:
    """A config that names a folder which does not exist makes no system."""
    config = run_config.load_recipe("configs/theworld.py:tiny_steps")
    config.model.world.predictor = "runs/nowhere"
    with pytest.raises(errors.UserError):
        systems.create(config)
    changed = recipes.change(config, {"model.world.steps": "0", "loss.chunk": "7", "model.eps": "0.5"})
    assert (changed.loss.chunk, changed.model.eps) == (7, 0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.logit_sdt": "2"}, r"config\.loss\.logit_sdt: this config has no such key; did you mean 'logit_std'\?"),
        ({"data.encodings.x": "2"}, r"config\.data\.encodings: this config has no such key; did you mean 'encoding'\?"),
        (
            {"model.width": "wide"},
            r"config\.model\.width: expected an integer from 1 to 1048576, got 'wide' \(it is 192\)",
        ),
        ({"sample.rollout.mode": "both"}, r"expected one of 'autoregressive', 'bidirectional', got 'both'"),
    ],
)
def test_mistakes(changes: dict[str, str], message: str) -> None:
    with pytest.raises(errors.UserError, match=message):
        recipes.change(run_config.load_recipe("configs/ar_mem.py"), changes)


def test_a_saved_config_has_lists(tmp_path: pathlib.Path) -> None:
    run_config.save(run_config.load_recipe("configs/ar_mem.py"), tmp_path)
    changed = recipes.change(
        run_config.load(tmp_path), {"model.rope_dims": "4,4,4", "data.recording.image_size": "8,6"}
    )
    assert (changed.model.rope_dims, changed.data.recording.image_size) == ((4, 4, 4), (8, 6))
