"""Released weights whose data are absent are measured on the episodes that tiny recipes record."""

import json
import pathlib

import pytest
import rich.console

from jworld import evaluate
from jworld.data import records
from jworld.evaluation import held_out, results
from jworld.utils import config as run_config
from jworld.utils import errors, resources


@pytest.mark.parametrize(
    ("weights", "recipe"), [("starter", "ar_mem"), ("matrix", "matrix_lora"), ("cosmos", "matrix_lora")]
)
def test_the_data_are_those_of_a_tiny_recipe(
    weights: str, recipe: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = run_config.load(resources.find(f"assets/{weights}"))
    own = config.data.records
    held_out.use_new_rooms(config)
    tiny = run_config.load_recipe(str(resources.find(f"configs/{recipe}.py")))
    assert config.data.records == tiny.data.records != own
    for section in ("recording", "encoding"):
        assert json.loads(config.data[section].to_json()) == json.loads(tiny.data[section].to_json())


def test_data_that_are_there_stay(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = run_config.load(resources.find("assets/starter"))
    before = json.loads(config.to_json())
    manifest = tmp_path / config.data.records / records.MANIFEST
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    held_out.use_new_rooms(config)
    assert json.loads(config.to_json()) == before


def test_own_videos_have_no_simulator(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = run_config.load(resources.find("assets/starter"))
    config.data.recording.source = ""
    before = json.loads(config.to_json())
    held_out.use_new_rooms(config)
    assert json.loads(config.to_json()) == before


def test_a_mistyped_folder_is_not_filled(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for given in ({"records_dir": "nowhere"}, {"changes": {"data.records": "nowhere"}}):
        with pytest.raises(errors.UserError, match="nowhere"):
            evaluate.evaluate(
                resources.find("assets/starter"),
                tmp_path / "out",
                results.Options(),
                console=rich.console.Console(),
                **given,
            )
    assert list(tmp_path.iterdir()) == []
