"""The page of a served model in headless Chromium, and what tests read from it."""

import contextlib
import os
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import live_server
import numpy as np
import pytest

from jworld.play import director
from scripts import chromium

MARKS = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.find() is None, reason="NO CHROMIUM: apt-get install chromium"),
]
#: Screenshots go here if the variable is set, so that they can be looked at.
SHOTS = "JWORLD_SCREENSHOTS"
#: Pixels of the screen as the page has them, RGBA.
PIXELS = "Array.from(screen.getContext('2d').getImageData(0, 0, screen.width, screen.height).data)"
LIT = "[...document.querySelectorAll('.key.{}')].map((cap) => cap.dataset.name).sort().join()"


@contextlib.asynccontextmanager
async def playing(
    folder: pathlib.Path, hash: str = "", **options: Any
) -> AsyncIterator[tuple[chromium.Page, str, director.Director]]:
    """Serve, and open the page; afterwards it must have had no errors."""
    async with live_server.serving(folder, **options) as (address, directing), chromium.opened(address + hash) as page:
        await page.until("play.state.count > 3")
        yield page, address, directing
        await shoot(page, folder.name)
        assert page.problems == []


async def shoot(page: chromium.Page, name: str) -> None:
    """Save a screenshot if a folder for it is given."""
    if os.environ.get(SHOTS):
        await page.screenshot(pathlib.Path(os.environ[SHOTS]) / f"{name}.png")


async def look(page: chromium.Page) -> np.ndarray:
    """Return the image that the page shows, uint8 [H, W, 3]."""
    pixels = np.array(await page.value(f"((screen) => {PIXELS})(document.getElementById('screen'))"), np.uint8)
    return pixels.reshape(*live_server.frame_shape()[:2], 4)[..., :3]


async def click(page: chromium.Page, name: str) -> None:
    """Click a button by its id."""
    await page.value(f"document.getElementById('{name}').click()")
