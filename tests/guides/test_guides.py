"""Every guide, page by page: its commands run in order and leave the files that they promise."""

import os
import pathlib
import time
from collections.abc import Callable, Iterator

import pytest

from guides import blocks, pages, runner

#: Some pages still fail and the whole takes long: they run on request until all pass.
REQUESTED = pytest.mark.skipif(not os.environ.get("JWORLD_GUIDES"), reason="make test-guides runs the pages")

RUN = [page for page in blocks.pages() if any(b.kind != "text" and b.reason is None for b in blocks.of_page(page))]


@pytest.fixture(scope="session")
def environment() -> Iterator[dict[str, str]]:
    with runner.serve() as found:
        yield found


def marked(page: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.e2e] if pages.PAGES.get(page, pages.Page()).fast else [pytest.mark.e2e, pytest.mark.slow]


@REQUESTED
@pytest.mark.parametrize("page", [pytest.param(page, marks=marked(page), id=page) for page in RUN])
def test_commands_of_a_page(
    page: str, environment: dict[str, str], tmp_path: pathlib.Path, record_property: Callable[[str, object], None]
) -> None:
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
    seconds = time.monotonic() - started
    record_property("guide", f"{page}: {len(ran)} blocks, {sum(map(len, ran))} commands, {seconds:.0f} s")
