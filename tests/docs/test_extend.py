"""The tables of docs/extend.md: exactly the Protocols of `base` and `sessions`, with exactly their members."""

import inspect
import pathlib
import re
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from jworld.systems import base, sessions

PAGE = pathlib.Path(__file__).parent.parent.parent / "docs" / "extend.md"
PROTOCOLS = {
    name: value
    for module in (base, sessions)
    for name, value in vars(module).items()
    if isinstance(value, type) and value.__module__ == module.__name__ and getattr(value, "_is_protocol", False)
    # Private ones belong to the base class, not to what a system offers.
    if not name.startswith("_")
}


def signature(protocol: type, name: str) -> str:
    """Return a member as the tables write it: `name`, or `name(a, b, *, c)` without defaults, types and self."""
    member = vars(protocol).get(name)
    if not inspect.isfunction(member):
        return name
    arguments = []
    for parameter in list(inspect.signature(member).parameters.values())[1:]:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in arguments:
            arguments.append("*")
        arguments.append(parameter.name)
    return f"{name}({', '.join(arguments)})"


def members(protocol: type) -> set[str]:
    """Return the members that a Protocol declares itself, without those of its bases."""
    names = vars(protocol).keys() | vars(protocol).get("__annotations__", {}).keys()
    return {signature(protocol, name) for name in names if not name.startswith("_") or name == "__call__"}


def rows(page: str, heading: str) -> list[tuple[str, str]]:
    """Return the first table below a heading of level three: member and meaning of each row."""
    section = re.search(rf"^### {heading}\n(.*?)(?=^##|\Z)", page, flags=re.MULTILINE | re.DOTALL)
    table = section[1] if section else ""
    return re.findall(r"^\| `([^`]+)` \| (.*?) \|$", table, flags=re.MULTILINE)


def differences(page: str, protocol: type) -> Iterator[str]:
    """Yield in what the table of a Protocol and its members differ."""
    listed = [member for member, _ in rows(page, protocol.__name__)]
    yield from (f"not in the table: {member}" for member in sorted(members(protocol) - {*listed}))
    yield from (f"not a member: {member}" for member in sorted({*listed} - members(protocol)))
    yield from (f"listed twice: {member}" for member in sorted({*listed}) if listed.count(member) > 1)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_the_table_lists_exactly_the_members(name: str) -> None:
    assert list(differences(PAGE.read_text(), PROTOCOLS[name])) == []
    assert all(meaning.strip() for _, meaning in rows(PAGE.read_text(), name))


def test_every_protocol_has_a_table_and_no_other_name_has_one() -> None:
    assert {"System", "VideoSystem", "TextSystem", "VideoSession", "TextSession", "TrainingData", "SystemType"} <= {
        *PROTOCOLS
    }
    headings = re.findall(r"^### (\S+)$", PAGE.read_text(), flags=re.MULTILINE)
    assert sorted(headings) == sorted(PROTOCOLS)


class Parent(Protocol):
    def inherited(self) -> None: ...


class Example(Parent, Protocol):
    field: int

    @property
    def size(self) -> int: ...

    def __call__(self, config: Any) -> Any: ...

    def reset(self, image: Any, *, seed: int = 0) -> None: ...

    def _private(self) -> None: ...


TABLE = """### Example

| member | meaning |
| --- | --- |
| `field` | A number. |
| `size` | Another one. |
| `__call__(config)` | Build it. |
| `reset(image, *, seed)` | Start. |

### Other

| `field` | Not of this section. |
"""


@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("", "", []),
        ("| `size` | Another one. |\n", "", ["not in the table: size"]),
        ("`size`", "`sizes`", ["not in the table: size", "not a member: sizes"]),
        ("*, seed", "seed", ["not in the table: reset(image, *, seed)", "not a member: reset(image, seed)"]),
        ("| `size`", "| `inherited()` | A base member. |\n| `size`", ["not a member: inherited()"]),
        ("| `size`", "| `field` | Again. |\n| `size`", ["listed twice: field"]),
        ("### Example", "### Renamed", ["not in the table: " + member for member in sorted(members(Example))]),
    ],
)
def test_differences_are_found(before: str, after: str, found: list[str]) -> None:
    assert list(differences(TABLE.replace(before, after, 1), Example)) == found
