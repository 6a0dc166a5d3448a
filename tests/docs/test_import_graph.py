"""The rooms of the source: who imports whom, and the script that counts it."""

import pathlib

import grimp
import pytest

from scripts import import_graph


def graph(*edges: tuple[str, str]) -> grimp.ImportGraph:
    built = grimp.ImportGraph()
    for importer, imported in edges:
        built.add_import(importer=importer, imported=imported, line_number=1, line_contents=f"import {imported}")
    return built


@pytest.fixture(scope="module")
def order() -> dict[str, int]:
    return import_graph.layer_order(import_graph.ROOT / "pyproject.toml")


@pytest.fixture(scope="module")
def rooms(order: dict[str, int]) -> import_graph.Rooms:
    return import_graph.analyze(order, import_graph.build_graph())


def test_no_import_leads_upward_and_every_room_has_a_layer(rooms: import_graph.Rooms) -> None:
    assert rooms.upward == []
    assert rooms.unlisted == []


def test_the_house_stays_small(rooms: import_graph.Rooms) -> None:
    assert len(rooms.floors) <= 24
    assert max(rooms.floors.values()) <= 8
    assert len(rooms.edges) <= 100


def test_every_room_of_the_source_is_counted(rooms: import_graph.Rooms) -> None:
    source = import_graph.ROOT / "jworld"
    folders = {f"jworld.{path.parent.name}" for path in source.glob("*/__init__.py")}
    files = {f"jworld.{path.stem}" for path in source.glob("*.py") if not path.stem.startswith("__")}
    assert folders | files | {"conversion", "jworld", *import_graph.COMMANDS} == rooms.floors.keys()


def test_floors_and_upward_edges_of_a_small_graph(order: dict[str, int]) -> None:
    built = graph(
        ("jworld.train", "jworld.systems.one"),
        ("jworld.systems.one", "jworld.models.net"),
        ("jworld.systems.one", "jworld.utils.files"),
        ("jworld.models.net", "jworld.utils.files"),
        ("jworld.precompute.__main__", "jworld.systems.one"),
        ("jworld.data.reader", "jworld.training.step"),
        ("jworld.encoders.text", "jworld.systems.one"),
        ("jworld.attic", "jworld.utils.files"),
        ("jworld.models.net", "jworld.models.layer"),
    )
    rooms = import_graph.analyze(order, built)
    assert rooms.floors["jworld.utils"] == 1
    assert rooms.floors["jworld.models"] == 2
    assert rooms.floors["jworld.train"] == rooms.floors["jworld.precompute.__main__"] == 4
    assert len(rooms.edges) == 8
    upward = [("jworld.data", "jworld.training"), ("jworld.encoders", "jworld.systems")]
    assert [edge for edge in rooms.upward if "jworld.attic" not in edge] == upward
    assert rooms.unlisted == ["jworld.attic"]
    assert "upward: jworld.data imports jworld.training" in import_graph.report(rooms)


def test_rooms_in_a_circle_are_an_error(order: dict[str, int]) -> None:
    built = graph(("jworld.data.a", "jworld.models.b"), ("jworld.models.b", "jworld.data.a"))
    with pytest.raises(ValueError, match=r"jworld\.data, jworld\.models"):
        import_graph.analyze(order, built)


def test_the_order_is_read_from_the_contract(tmp_path: pathlib.Path) -> None:
    pyproject = tmp_path / "pyproject.toml"
    pyproject.write_text(
        '[[tool.importlinter.contracts]]\nid = "layers"\n'
        'layers = ["jworld.train", "(jworld.play) | conversion", "jworld.systems", "jworld.utils"]\n'
    )
    order = import_graph.layer_order(pyproject)
    assert order["jworld.train"] == order["jworld.precompute.__main__"] == 0
    assert order["jworld.train"] < order["jworld.play"] == order["conversion"]
    assert order["conversion"] < order["jworld"] < order["jworld.systems"] < order["jworld.utils"]
