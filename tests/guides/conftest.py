"""Fixture that runs all blocks of a page; one server for the pages of a process."""

import pathlib
import time
from collections.abc import Callable, Iterator

import pytest

from guides import blocks, pages, runner


@pytest.fixture(scope="session")
def environment() -> Iterator[dict[str, str]]:
    with runner.serve() as found:
        yield found


@pytest.fixture
def run_page(
    environment: dict[str, str], tmp_path: pathlib.Path, record_property: Callable[[str, object], None]
) -> Callable[[str], None]:
    """Return a function that runs the commands of a page in order and checks the files that they promise."""

    def run(page: str) -> None:
        folder, needs = tmp_path / "page", pages.PAGES.get(page, pages.Page())
        started, ran = time.monotonic(), []
        try:
            runner.make_folder(folder)
            runner.prepare(needs, folder, environment)
            for block in blocks.of_page(page):
                if block.kind != "text" and block.reason is None:
                    ran.append(runner.run(block, needs, folder, environment))
        except runner.BlockError as error:
            pytest.fail(str(error), pytrace=False)
        commands = [command for block in ran for command in block]
        used = sum(command.cpu_seconds for command in commands)
        record_property(
            "guide",
            f"{page}: {len(ran)} blocks, {len(commands)} commands, "
            f"{time.monotonic() - started:.0f} s, of which commands used {used:.0f} CPU seconds",
        )

    return run
