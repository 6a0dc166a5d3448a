"""A key layout or a family is added by one registry entry: every conversion command works without any other change."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import converted
import pytest

from conversion import __main__ as conversion
from conversion import engine, families, hunyuan
from conversion.base import Family, KeyLayout
from jworld.systems import runs
from jworld.utils.errors import UserError

CASE, PREFIX = "transformer_ar_train", "dummy."


def rules(cfg: Any) -> list[engine.Rule]:
    """Return the original key table with a prefix to every name."""
    return [dataclasses.replace(rule, source=PREFIX + rule.source) for rule in hunyuan.rules(cfg)]


def from_shapes(shapes: Mapping[str, engine.Shape]) -> dict[str, Any]:
    return hunyuan.from_shapes({name.removeprefix(PREFIX): shape for name, shape in shapes.items()})


DUMMY = KeyLayout(
    name="dummy",
    title="a dummy program",
    marks=(PREFIX + "cond_type_embedding.weight",),
    rules=rules,
    from_shapes=from_shapes,
    from_config=hunyuan.from_config,
    to_config=lambda cfg: hunyuan.to_config(cfg) | {"dummy": True},
    limits=lambda cfg: ["dummies are small"],
)


@pytest.fixture
def dummy(monkeypatch: pytest.MonkeyPatch) -> KeyLayout:
    """Register a third layout of WorldPlay."""
    family = families.FAMILIES["worldplay"]
    changed = family.with_layouts(*family.layouts.values(), DUMMY)
    monkeypatch.setitem(families.FAMILIES, family.name, changed)
    return DUMMY


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    conversion.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def test_every_command_supports_it(
    dummy: KeyLayout, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Import in the original layout; export, inspect, import, verify and export back in the dummy layout."""
    download = converted.download(tmp_path / "download", CASE)
    run(capsys, "import", download, "--output", tmp_path / "first", "--set", *converted.SETTINGS)
    out = run(capsys, "export", tmp_path / "first", "--layout", "dummy", "--output", tmp_path / "dummy")
    assert "in the layout of a dummy program" in out
    assert "that program cannot load these sizes: dummies are small" in out
    exported = converted.contents(tmp_path / "dummy")
    assert exported == {PREFIX + name: content for name, content in converted.contents(download).items()}
    assert json.loads((tmp_path / "dummy" / "config.json").read_text())["dummy"] is True
    assert "a dummy program" in run(capsys, "inspect", tmp_path / "dummy")

    run(capsys, "import", tmp_path / "dummy", "--output", tmp_path / "second", "--set", *converted.SETTINGS)
    records = [runs.import_record(tmp_path / name) for name in ("first", "second")]
    assert [record["layout"] for record in records] == ["original", "dummy"]
    assert records[0]["checksum"] == records[1]["checksum"]
    assert "equal: " in run(capsys, "verify", tmp_path / "second", tmp_path / "dummy")
    run(capsys, "export", tmp_path / "second", "--layout", "original", "--output", tmp_path / "back")
    assert converted.contents(tmp_path / "back") == converted.contents(download)


def test_help_lists_it(dummy: KeyLayout, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        conversion.main(["export", "--help"])
    assert "dummy" in capsys.readouterr().out


def test_a_family_is_one_entry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same network under another name, with published models of its own."""
    worldplay_runs = families.FAMILIES["worldplay"].runs
    assert worldplay_runs is not None
    own = dataclasses.replace(
        worldplay_runs, variants={"toy": {"num_steps": 3}}, guess_variant=lambda path, facts: "toy"
    )
    family = Family(name="toys", describe=lambda facts: "a toy network", runs=own).with_layouts(DUMMY)
    monkeypatch.setitem(families.FAMILIES, family.name, family)
    assert "toy" in families.variants()

    download = converted.download(tmp_path / "download", CASE)
    renamed = {PREFIX + name: tensor for name, tensor in converted.case(CASE).weights.items()}
    converted.rewrite(download, renamed)
    arguments = ("--output", tmp_path / "imported", "--family", "toys", "--set", *converted.SETTINGS)
    assert "a toy network, sampled as toy" in run(capsys, "import", download, *arguments)
    assert runs.import_record(tmp_path / "imported")["family"] == "toys"
    config = json.loads((tmp_path / "imported" / "config.json").read_text())
    assert (config["system"], config["sample"]["rollout"]["num_steps"]) == (worldplay_runs.system, 3)


def test_tensors_of_two_layouts_in_one_file_are_refused(dummy: KeyLayout) -> None:
    assert families.detect(dummy.marks, "x")[1] is dummy
    with pytest.raises(UserError, match=r"a dummy program \(dummy\) at once; expected one layout"):
        families.detect([*dummy.marks, *families.FAMILIES["worldplay"].layouts["original"].marks], "x")


def test_every_mark_identifies_one_layout() -> None:
    marks = [mark for family in families.FAMILIES.values() for x in family.layouts.values() for mark in x.marks]
    assert len(marks) == len(set(marks)) >= len(families.FAMILIES)
    for family in families.FAMILIES.values():
        assert family.layouts, family.name
        assert {name: layout.name for name, layout in family.layouts.items()} == {name: name for name in family.layouts}
