"""Every command of docs/array_records.md, in order."""

from collections.abc import Callable

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


def test_commands_of_the_page(run_page: Callable[[str], None]) -> None:
    run_page("docs/array_records.md")
