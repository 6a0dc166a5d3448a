"""The page alone for a long time: a server without a model, which only welcomes it."""

import asyncio
import contextlib
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web

from scripts import chromium

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(chromium.find() is None, reason="NO CHROMIUM: apt-get install chromium"),
]
PAGE = pathlib.Path(__file__).parents[2] / "jworld" / "play" / "page"
WELCOME: dict[str, Any] = {
    **{"type": "welcome", "id": "x", "keys": [], "fps": 16, "size": [128, 96], "step_frames": 16, "delay": 1},
    **{"captions": False, "memory": True, "questions": False, "images": [], "steps": None, "guidance": None},
    "limits": {"steps": 100, "guidance": 30, "image": 1 << 20, "question": 500},
    "start": {"prompt": "", "seed": 0, "steps": None, "guidance": None, "image": "own"},
    **{"paused": False, "resumed": False},
}
#: Gives the page the messages and frames of steps; every frame is the last one of a latent.
FEED = """(async (from, to) => {
  const { connection, state } = play, { message, frame } = connection.handlers;
  const screen = document.getElementById("screen"), pen = screen.getContext("2d");
  let drawn = () => {};
  pen.drawImage = (...values) => { CanvasRenderingContext2D.prototype.drawImage.apply(pen, values); drawn(); };
  const blob = await new Promise((done) => screen.toBlob(done, "image/jpeg"));
  const content = new Uint8Array(await blob.arrayBuffer());
  const seconds = { denoise: 0.1, decode: 0.1, send: 0.1, compile: 0 };
  for (let step = from; step < to; step++) {
    const first = 16 * step, cameras = [...Array(16)].map((_, k) => [first + k, step % 9, 0, 1]);
    const context = cameras.map((_, k) => Math.max(first - 7 * k, 0)), action = step % 2 ? "w" : "none";
    const facts = { step, action, first_frame: 4 * first, frames: 16, format: "jpeg", bytes: 1000, dropped: 0 };
    message({ type: "computed", seconds, memory: { first, context, cameras }, ...facts });
    for (let latent = first; latent < first + 16; latent++) {
      frame({ format: "jpeg", step, frame: 4 * latent, content });
      // Four are decoded at a time.
      while (latent % 4 === 3 && state.last !== 4 * latent) await new Promise((done) => (drawn = done));
    }
  }
  return state.count;
})"""


@contextlib.asynccontextmanager
async def welcoming() -> AsyncIterator[str]:
    """Serve the page; yields the address."""

    async def socket(request: web.Request) -> web.WebSocketResponse:
        found = web.WebSocketResponse()
        await found.prepare(request)
        await found.send_json(WELCOME)
        async for _ in found:
            pass
        return found

    async def index(_: web.Request) -> web.FileResponse:
        return web.FileResponse(PAGE / "index.html")

    app = web.Application()
    app.add_routes([web.get("/", index), web.get("/socket", socket), web.static("/page", PAGE)])
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def size(page: chromium.Page) -> dict[str, float]:
    """Return the page's heap in bytes, number of elements, and other figures."""
    await page.call("HeapProfiler.collectGarbage")
    found = await page.call("Performance.getMetrics")
    return {metric["name"]: metric["value"] for metric in found["metrics"]}


def test_ten_thousand_frames_on_the_page() -> None:
    """After 3,840 of 10,240 frames, each of a latent of its own, neither the heap nor the elements grow."""

    async def test() -> None:
        async with welcoming() as address, chromium.opened(address) as page:
            await page.call("Performance.enable")
            await page.until("play.state.welcome")
            sizes = []
            for start in range(0, 640, 4):
                await page.value(f"{FEED}({start}, {start + 4})")
                sizes.append(await size(page))
            assert await page.value("play.state.last") == 4 * (16 * 640 - 1)
            settled, final = sizes[60], sizes[-1]
            # Runs of keys are stored for the replay.
            assert final["JSHeapUsedSize"] - settled["JSHeapUsedSize"] < 3e6, (settled, final)
            assert final["Nodes"] <= settled["Nodes"] + 100
            assert await page.value("play.memory.thumbnails.size") <= 3000
            assert await page.value("play.memory.cameras.length") <= 3000
            assert page.problems == []

    asyncio.run(test())
