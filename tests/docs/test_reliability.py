"""The table of promises: every test that it names exists."""

import re

import commands
import pytest

PAGE = commands.ROOT / "docs" / "reliability.md"
NAMED = sorted(set(re.findall(r"`(tests/[\w/.]+(?:::\w+)?)`", PAGE.read_text())))


def test_every_promise_names_a_test() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.startswith(("| ---", "| promise", "| work"))]
    assert len(promises) > 20
    assert [row for row in promises if "`tests/" not in row] == []


@pytest.mark.parametrize("name", NAMED)
def test_the_named_tests_exist(name: str) -> None:
    file, _, function = name.partition("::")
    path = commands.ROOT / file
    assert path.exists()
    if function:
        assert re.search(rf"^def {function}\(", path.read_text(), re.M)
