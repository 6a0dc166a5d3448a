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
