"""Every command of docs/extend.md, in order."""

from collections.abc import Callable

import pytest

pytestmark = pytest.mark.e2e


def test_commands_of_the_page(run_page: Callable[[str], None]) -> None:
    run_page("docs/extend.md")
