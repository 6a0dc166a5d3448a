"""Recipes and saved configs: found, checked, renamed; sections as dataclasses."""

import dataclasses
import json
import pathlib
from typing import Any, Literal

import ml_collections
import pytest

from jworld.utils import config as run_config
from jworld.utils import errors, ranges

OLD, NEW = "sample.rollout.told_guidance", "sample.rollout.guidance_embedding_scale"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """A section.

    Attributes:
      width: of something.
    """

    width: int
    rate: float = 0.5
    sizes: tuple[int, ...] = ()
    kind: Literal["a", "b"] = "a"


def write_config(directory: pathlib.Path, rollout: dict[str, Any]) -> None:
    values = {name: {} for name in run_config.SECTIONS} | {"sample": {"rollout": rollout}}
    (directory / run_config.FILE_NAME).write_text(json.dumps(values))


def test_a_section_becomes_a_dataclass() -> None:
    values = ml_collections.ConfigDict({"width": 3, "rate": 1, "sizes": [1, 2]})
    assert run_config.section(Section, values, "model") == Section(width=3, rate=1.0, sizes=(1, 2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 3, "rats": 1}, "config.model.rats: unknown key, did you mean 'rate'?"),
        ({"width": 3, "xyz": 1}, "config.model.xyz: unknown key, expected one of kind, rate, sizes, width"),
        ({"width": 3.5}, "config.model.width: found 3.5, expected an integer"),
        ({"width": 3, "kind": "c"}, "config.model.kind: found 'c', expected one of 'a', 'b'"),
        ({}, "config.model.width is missing"),
    ],
)
def test_wrong_sections(values: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.UserError) as found:
        run_config.section(Section, values, "model")
    assert str(found.value) == message


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "an integer"),
        (int | None, "an integer or None"),
        (Literal["a", "b"] | None, "one of 'a', 'b' or None"),
        (tuple[int, int], "a list of 2, such as 1,1"),
        (tuple[str, ...], "a list such as text,text"),
        (tuple[tuple[int, float], ...], "a list such as (1,0.5),(1,0.5)"),
        (Any, "any value"),
    ],
)
def test_types_in_words(hint: Any, words: str) -> None:
    assert ranges.describe(hint) == words


def test_a_saved_config_with_an_older_name(tmp_path: pathlib.Path) -> None:
    assert run_config.RENAMED[OLD] == NEW
    write_config(tmp_path, {"told_guidance": 1.5, "num_steps": 4})
    assert run_config.load(tmp_path).sample.rollout.to_dict() == {"guidance_embedding_scale": 1.5, "num_steps": 4}


def test_the_present_name_counts_more(tmp_path: pathlib.Path) -> None:
    write_config(tmp_path, {"told_guidance": 1.5, "guidance_embedding_scale": 2.0})
    assert run_config.load(tmp_path).sample.rollout.to_dict() == {"guidance_embedding_scale": 2.0}


def test_a_key_that_moved_to_another_section(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_config, "RENAMED", {"sample.rollout.seed": "sample.noise.seed"})
    write_config(tmp_path, {"seed": 3})
    assert run_config.load(tmp_path).sample.to_dict() == {"rollout": {}, "noise": {"seed": 3}}


def test_saved_names_of_earlier_versions(tmp_path: pathlib.Path) -> None:
    saved = {
        "loss": {"target": "average", "given_frames": [1, 2]},
        "model": {"world": {"codec": "linear.safetensors", "codec_ratio": 8}},
        "sample": {"rollout": {"given_frames": 2}},
    }
    values = {section: {} for section in run_config.SECTIONS} | saved
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = run_config.load(tmp_path)
    assert config.loss.to_dict() == {"target": "ema", "conditioning_frames": [1, 2]}
    assert config.model.world.to_dict() == {"autoencoder_file": "linear.safetensors", "autoencoder_ratio": 8}
    assert config.sample.rollout.to_dict() == {"conditioning_frames": 2}


def test_a_recipe_from_any_folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_config.load_recipe("configs/ar_mem.py:8b").model.width == 2048
    # This one stands on two others.
    assert run_config.load_recipe("configs/matrix_scm.py:2b").loss.kind == "consistency"
    own = tmp_path / "configs" / "matrix_swin_dpm.py"
    own.parent.mkdir()
    own.write_text("def get_config():\n    raise ValueError('the recipe of this folder')\n")
    with pytest.raises(errors.UserError, match="the recipe of this folder"):
        run_config.load_recipe("configs/matrix_scm.py")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("configs/ar_men.py", "there is no file configs/ar_men.py; did you mean configs/ar_mem.py?"),
        ("mine.py", "there is no file mine.py; jworld has configs/ar_distill.py, configs/ar_mem.py"),
        ("configs/ar_mem.py:9b", "there is no variant '9b', choose one of doom"),
    ],
)
def test_recipes_that_do_not_exist(
    name: str, message: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.UserError) as found:
        run_config.load_recipe(name)
    assert message in str(found.value)
