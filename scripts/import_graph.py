"""Print the rooms of the source, the floors they stand on, and who imports whom.

    python scripts/import_graph.py            # every room, then the totals
    python scripts/import_graph.py --json     # the same as JSON

A room is a package or module directly below `jworld`, or `conversion`; `jworld.precompute.__main__`, a command in the
folder of its library, counts as a room of its own. An edge joins two rooms of which the first imports the second. The
floor of a room is the length of the longest chain of imports below it, counted from 1. An edge is upward unless it
leads to a lower layer of the contract `layers` in pyproject.toml, from which the order of the rooms is read.

Exit code 1 where an edge leads upward or a room is missing from the contract.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import sys
import tomllib

import grimp

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGES = ("conversion", "jworld")
#: Commands that lie in the folder of their library, with the layer that they belong to.
COMMANDS = {"jworld.precompute.__main__": "jworld.train"}
#: Modules that count as another room.
PARTS = {"jworld.__main__": "jworld.cli"}

Edge = tuple[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rooms:
    """The import graph between rooms.

    Attributes:
        floors: floor of every room, from 1.
        edges: number of import statements of every edge (importer, imported).
        upward: the edges that do not lead to a lower layer.
        unlisted: rooms that the contract does not name.
    """

    floors: dict[str, int]
    edges: dict[Edge, int]
    upward: list[Edge]
    unlisted: list[str]


def room_of(module: str) -> str:
    """Return the room of a module, given by its full name."""
    if module in COMMANDS:
        return module
    if module in PARTS:
        return PARTS[module]
    parts = module.split(".")
    return parts[0] if parts[0] != "jworld" else ".".join(parts[:2])


def layer_order(pyproject: pathlib.Path) -> dict[str, int]:
    """Return room -> height of its layer in the contract `layers`; lower numbers are higher layers."""
    contracts = tomllib.loads(pyproject.read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["id"] == "layers"]
    order: dict[str, int] = {}
    for number, layer in enumerate(layers):
        order |= {name.strip().strip("()"): 2 * number for name in layer.replace(":", "|").split("|")}
    # The root of the package is the Python API: it opens runs, and stands between the systems and what is above them.
    return order | {room: order[layer] for room, layer in COMMANDS.items()} | {"jworld": order["jworld.systems"] - 1}


def measure_floors(rooms: set[str], edges: dict[Edge, int]) -> dict[str, int]:
    """Return room -> length of the longest chain of imports that starts there.

    Raises:
        ValueError: rooms import each other in a circle.
    """
    below = {room: {imported for importer, imported in edges if importer == room} for room in rooms}
    floors: dict[str, int] = {}
    while len(floors) < len(rooms):
        ready = [room for room in rooms - floors.keys() if below[room] <= floors.keys()]
        if not ready:
            raise ValueError(f"rooms import each other in a circle: {', '.join(sorted(rooms - floors.keys()))}")
        floors |= {room: 1 + max((floors[lower] for lower in below[room]), default=0) for room in ready}
    return floors


def analyze(order: dict[str, int], graph: grimp.ImportGraph) -> Rooms:
    """Return the rooms of `graph`, compared with the layers in `order` (see `layer_order`)."""
    edges: collections.Counter[Edge] = collections.Counter()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            edge = room_of(module), room_of(imported)
            if edge[0] != edge[1]:
                edges[edge] += len(graph.get_import_details(importer=module, imported=imported))
    rooms = {room_of(module) for module in graph.modules}
    return Rooms(
        floors=measure_floors(rooms, edges),
        edges=dict(sorted(edges.items())),
        upward=sorted(edge for edge in edges if order.get(edge[0], -1) >= order.get(edge[1], len(order))),
        unlisted=sorted(rooms - order.keys()),
    )


def report(rooms: Rooms) -> str:
    """Return the text that the command prints."""
    lines = []
    for room, floor in sorted(rooms.floors.items(), key=lambda item: (-item[1], item[0])):
        imported = [f"{lower} ({count})" for (upper, lower), count in rooms.edges.items() if upper == room]
        lines.append(f"floor {floor}  {room}: {', '.join(imported) or 'imports no room'}")
    lines += [f"upward: {importer} imports {imported}" for importer, imported in rooms.upward]
    lines += [f"missing from the contract `layers` in pyproject.toml: {room}" for room in rooms.unlisted]
    totals = f"{len(rooms.floors)} rooms, {max(rooms.floors.values())} floors, {len(rooms.edges)} edges"
    return "\n".join([*lines, f"{totals}, {len(rooms.upward)} upward"])


def as_json(rooms: Rooms) -> str:
    """Return the graph as one JSON object."""
    content = {
        "floors": rooms.floors,
        "edges": [[*edge, count] for edge, count in rooms.edges.items()],
        "upward": rooms.upward,
        "unlisted": rooms.unlisted,
    }
    return json.dumps(content, indent=2)


def build_graph() -> grimp.ImportGraph:
    """Read the imports of the checkout that this script belongs to; imports for type checkers are left out."""
    sys.path.insert(0, str(ROOT))
    return grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description="Print the rooms of the source and who imports whom.")
    parser.add_argument("--json", action="store_true", help="print JSON (default: a table)")
    arguments = parser.parse_args()
    rooms = analyze(layer_order(ROOT / "pyproject.toml"), build_graph())
    print(as_json(rooms) if arguments.json else report(rooms))
    return 1 if rooms.upward or rooms.unlisted else 0


if __name__ == "__main__":
    raise SystemExit(main())
