"""The page with gamepads, touch pads, a slow or hostile tab, and for a long time; keys seen in the images."""

import asyncio
import base64
import io
import pathlib
from typing import Any

import live_server
import numpy as np
import PIL.Image
from page import LIT, MARKS, click, look, playing, shoot

from jworld.evaluation import motion
from jworld.utils import limits
from scripts import chromium

pytestmark = MARKS
ROOT = pathlib.Path(__file__).parents[2]
#: Contents of the received frames by number, which the page then shows as ever.
COLLECT = """(() => {
  const { handlers } = play.connection, { frame } = handlers;
  play.received = {};
  handlers.frame = (each) => {
    play.received[each.frame] = btoa(String.fromCharCode(...each.content));
    frame(each);
  };
  play.connection.send("pace", { on: false });
})()"""


async def phone(page: chromium.Page) -> None:
    """Make the tab a phone with a touch screen."""
    await page.call("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=2, mobile=True)
    await page.call("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=5)


async def touch(page: chromium.Page, kind: str, *points: tuple[int, float, float]) -> None:
    """Touch the screen at points (number, x, y)."""
    await page.call(
        "Input.dispatchTouchEvent", type=kind, touchPoints=[{"id": n, "x": x, "y": y} for n, x, y in points]
    )


def test_touch_pads_on_a_phone(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with playing(tmp_path) as (page, _, _):
            await phone(page)
            await page.until("getComputedStyle(document.getElementById('pads')).display === 'flex'")
            boxes: Any = await page.value(
                "[...document.querySelectorAll('.pad')].map((pad) => pad.getBoundingClientRect())"
                ".map((box) => [box.left, box.top, box.width])"
            )
            left, right = [(x + width / 2, y + width / 2) for x, y, width in boxes]
            # Both thumbs: forward, and turned to the right.
            await touch(page, "touchStart", (0, *left))
            await touch(page, "touchMove", (0, left[0], left[1] - 45))
            await touch(page, "touchStart", (0, left[0], left[1] - 45), (1, right[0] + 45, right[1]))
            assert await page.value(LIT.format("pressed")) == "right,w"
            await page.until(f"{LIT.format('applied')} === 'right,w'")
            await shoot(page, "phone")
            await touch(page, "touchEnd")
            assert await page.value(LIT.format("pressed")) == ""
            # Nothing is wider than the screen.
            assert await page.value("document.documentElement.scrollWidth") <= 390

    asyncio.run(test())


def test_gamepad(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with playing(tmp_path) as (page, _, _):
            await page.call("Emulation.setFocusEmulationEnabled", enabled=True)
            await page.value(
                "play.pad = {connected: true, axes: [0, -1, 0.1, 0], buttons: []};"
                "navigator.getGamepads = () => [null, play.pad]; 1"
            )
            await page.until(f"{LIT.format('pressed')} === 'w'")
            await page.until(f"{LIT.format('applied')} === 'w'")
            # The cross, and the second stick.
            await page.value(
                "play.pad.axes = [0, 0, -0.9, 0];"
                "play.pad.buttons = [...Array(16)].map((_, i) => ({pressed: i === 13})); 1"
            )
            await page.until(f"{LIT.format('pressed')} === 'left,s'")
            # An unplugged gamepad holds nothing.
            await page.value("play.pad = null; 1")
            await page.until(f"{LIT.format('pressed')} === ''")

    asyncio.run(test())


def test_images_move_as_the_keys_say(tmp_path: pathlib.Path) -> None:
    """The motion between the images that the page has received, as a network measures it from pixels alone."""
    meter = motion.MotionMeter.load(ROOT / "assets" / "motion" / "rooms.safetensors")
    walks, turns = {}, {}

    async def test() -> None:
        async with playing(tmp_path) as (page, _, _):
            await page.value(COLLECT)
            await click(page, "pause")
            await page.until("play.state.paused")
            for key in ("ArrowRight", "ArrowLeft", "KeyW", "KeyS"):
                await page.value("document.querySelectorAll('#images img')[1].click()")
                await page.until("play.state.start.image === 'view-2' && play.state.actions.length === 0")
                await page.value("play.received = {}; 1")
                await click(page, "step")
                await page.until("12 in play.received")
                await page.key(key, True)
                await click(page, "step")
                await page.until("28 in play.received && play.state.last === 28")
                await page.key(key, False)
                files = [base64.b64decode(await page.value(f"play.received[{number}]")) for number in range(29)]
                video = np.stack([np.asarray(PIL.Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
                assert video.shape[1:] == live_server.frame_shape()
                # The screen shows the last one.
                assert np.abs(await look(page) - video[-1].astype(int)).max() <= 8
                numbers = meter(video).numbers[-4:].mean(axis=0)
                walks[key], turns[key] = float(numbers[1]), float(numbers[2])

    asyncio.run(test())
    assert turns["ArrowRight"] > turns["KeyW"] + 1 > turns["ArrowLeft"] + 2, turns
    assert walks["KeyW"] > walks["ArrowRight"] + 0.05 > walks["KeyS"] + 0.1, walks


def test_a_slow_tab_and_a_flood(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with playing(tmp_path) as (page, _, directing):
            (player,) = directing.players.values()
            await page.value(
                "play.slow = setInterval("
                "() => { const end = performance.now() + 700; while (performance.now() < end); }, 750)"
            )
            new, ahead = live_server.warm().world.new_frames, 0
            count = await page.value("play.state.count")
            for _ in range(20):
                await asyncio.sleep(0.2)
                ahead = max(ahead, player.pacer.waiting)
                assert player.sent - player.shown <= 3 * new
            assert ahead <= 2 * new
            await page.until(f"play.state.count > {count}")
            await page.value("clearInterval(play.slow)")
            # A script that floods the server is disconnected, and the page continues its session.
            steps = len(player.entries)
            send = "play.connection.send('keys', { held: [] })"
            await page.value(f"for (let i = 0; i < {limits.PLAY_BURST + 300}; i++) {send}")
            await page.until("document.getElementById('notice').textContent.includes('connected again')")
            assert list(directing.players.values()) == [player]
            while len(player.entries) <= steps:
                await asyncio.sleep(0.05)

    asyncio.run(test())


def test_ten_thousand_frames_on_the_page(tmp_path: pathlib.Path) -> None:
    """The page draws 10,000 frames, each of a latent of its own; after 3,840 neither heap nor elements grow."""
    feed = """(async (from, to) => {
      const { connection, state } = play, { message, frame } = connection.handlers, channel = new MessageChannel();
      const turn = () => new Promise((done) => { channel.port1.onmessage = done; channel.port2.postMessage(0); });
      const blob = await new Promise((done) => document.getElementById("screen").toBlob(done, "image/jpeg"));
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
          while (latent % 4 === 3 && state.last !== 4 * latent) await turn();
        }
      }
      return state.count;
    })"""

    async def size(page: chromium.Page) -> dict[str, float]:
        await page.call("HeapProfiler.collectGarbage")
        found = await page.call("Performance.getMetrics")
        return {metric["name"]: metric["value"] for metric in found["metrics"]}

    async def test() -> None:
        async with playing(tmp_path) as (page, _, directing):
            await page.call("Performance.enable")
            (player,) = directing.players.values()
            await click(page, "pause")
            while player.computing or player.pacer.waiting or not player.paused:
                await asyncio.sleep(0.05)
            sizes = []
            for start in range(100, 740, 20):
                await page.value(f"{feed}({start}, {start + 20})")
                sizes.append(await size(page))
            assert await page.value("play.state.last") == 4 * (16 * 740 - 1)
            settled, final = sizes[12], sizes[-1]
            # Runs of keys are stored for the replay.
            assert final["JSHeapUsedSize"] - settled["JSHeapUsedSize"] < 3e6, (settled, final)
            assert final["Nodes"] <= settled["Nodes"] + 100
            assert await page.value("play.memory.thumbnails.size") <= 3000
            assert await page.value("play.memory.cameras.length") <= 3000
            # Frames of the model come after them on the same page.
            await click(page, "reset")
            await page.until("play.state.actions.length === 0")

    asyncio.run(test())
