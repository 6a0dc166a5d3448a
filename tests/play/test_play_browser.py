"""The page of `jworld play` in a real browser: headless Chromium.

Without Chromium these tests are skipped with a warning; `.ci/run` installs it.
"""

import asyncio
import io
import json
import pathlib
import urllib.parse
import warnings

import live_server
import numpy as np
import PIL.Image
import tiny_text_model
from page import LIT, MARKS, PIXELS, look, playing

from jworld.systems import key_logs
from scripts import chromium

if chromium.find() is None:
    warnings.warn("NO CHROMIUM: the page of jworld play is NOT tested; apt-get install chromium", stacklevel=1)

pytestmark = MARKS


def test_keys_are_lit_and_answered(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with playing(tmp_path) as (page, _, directing):
            before = await look(page)
            await page.key("KeyW", True)
            await page.key("ArrowRight", True)
            assert await page.value(LIT.format("pressed")) == "right,w"
            await page.until("play.state.latencies.length >= 2")
            assert await page.value(LIT.format("applied")) == "right,w"
            for latency in await page.value("play.state.latencies"):
                # The frame comes at the end of the step that is shown, and never long after the next one.
                assert 0 < latency < 10_000
            await page.until("play.memory.cameras.length > 12")
            assert (await look(page) != before).any()
            # Turning to the right while walking: the latest camera looks to the right of the first one.
            assert await page.value("play.memory.cameras.at(-1)[2] > 0.3")
            assert await page.value("document.querySelectorAll('#context canvas').length >= 8")
            # Only what was shown has a thumbnail.
            assert await page.value("play.memory.thumbnails.size > 4")
            await page.key("KeyW", False)
            await page.until(f"{LIT.format('pressed')} === 'right'")
            await page.value("window.dispatchEvent(new Event('blur'))")
            await page.until(f"{LIT.format('pressed')} === ''")
            await page.until(f"{LIT.format('applied')} === ''")
            (player,) = directing.players.values()
            assert player.latch() == []
            names = ["shown-rate", "model-rate", "denoise", "decode", "send", "latency", "frames"]
            figures = await page.value(f"{names}.map((id) => document.getElementById(id).textContent)")
            assert all(any(letter.isdigit() for letter in text) for text in figures), figures

    asyncio.run(test())


def test_typing_a_caption_presses_no_key(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with playing(tmp_path) as (page, _, _):
            await page.value("document.getElementById('prompt').focus()")
            await page.key("KeyW", True)
            await page.key("KeyW", False)
            assert await page.value(LIT.format("pressed")) == ""
            assert await page.value("play.state.pressed.size") == 0

    asyncio.run(test())


def test_pause_step_and_reset(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with playing(tmp_path) as (page, _, directing):
            (player,) = directing.players.values()
            await page.value("document.getElementById('pause').click()")
            await page.until("play.state.paused")
            await page.until("document.getElementById('pause').textContent === 'play'")
            while player.computing or player.pacer.waiting:
                await asyncio.sleep(0.05)
            count = len(player.entries)
            await page.value("document.getElementById('step').click()")
            await page.until(f"play.state.steps.at(-1)?.step === {count}")
            await asyncio.sleep(1)
            assert len(player.entries) == count + 1
            await page.value("document.getElementById('seed').value = 77; document.getElementById('reset').click()")
            await page.until("play.state.start.seed === 77 && play.state.actions.length === 0")
            assert (player.start.seed, player.paused) == (77, True)
            # Another first image, with its caption.
            await page.value("document.querySelectorAll('#images img')[1].click()")
            await page.until("play.state.start.image === 'view-2'")
            await page.value("document.getElementById('pause').click()")
            await page.until("play.state.count > 5")

    asyncio.run(test())


def test_share_link_replays_the_same_frames(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with playing(tmp_path) as (page, _, directing):
            (player,) = directing.players.values()
            await page.key("ArrowLeft", True)
            await page.until("play.state.actions.some(([name]) => name === 'left')")
            await page.key("ArrowLeft", False)
            await page.value("document.getElementById('share').click()")
            link = await page.until("location.hash")
            played = [entry.frames for entry in player.entries]
        values = json.loads(urllib.parse.parse_qs(link[1:])["play"][0])
        steps = sum(count for _, count in values["script"])
        async with playing(tmp_path / "again", link) as (page, _, directing):
            (player,) = directing.players.values()
            await page.until(f"play.state.steps.at(-1)?.step >= {steps - 1}")
            assert [entry.frames for entry in player.entries][:steps] == played[:steps]

    asyncio.run(test())


def test_own_image_recording_screenshot_and_log(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        downloads = tmp_path / "downloads"
        async with playing(tmp_path) as (page, _, directing):
            await page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
            picture = tmp_path / "own.png"
            PIL.Image.new("RGB", (100, 80), (200, 30, 30)).save(picture)
            root = (await page.call("DOM.getDocument"))["root"]["nodeId"]
            node = (await page.call("DOM.querySelector", nodeId=root, selector="#file"))["nodeId"]
            await page.call("DOM.setFileInputFiles", nodeId=node, files=[str(picture)])
            await page.until("play.state.start.image === 'own' && play.state.count > 3")
            red = (await look(page)).reshape(-1, 3).mean(axis=0)
            assert red[0] > 100 > red[1]
            await page.value("document.getElementById('record').click()")
            await page.until("document.getElementById('record').textContent === 'stop'")
            await page.until("play.state.actions.reduce((sum, run) => sum + run[1], 0) > 3")
            await page.value("document.getElementById('record').click()")
            await page.until("document.querySelector('#files a[download$=\".mp4\"]')?.download ?? ''")
            (name,) = directing.recordings
            assert (tmp_path / "episodes" / name / "episode.json").is_file()
            for button in ("shot", "log"):
                await page.value(f"document.getElementById('{button}').click()")
            await page.until(
                "[...document.querySelectorAll('#files a')].some((link) => link.download.endsWith('.json'))"
            )
            for _ in range(200):
                found = {path.suffix: path for path in downloads.glob("*")} if downloads.is_dir() else {}
                if {".png", ".json"} <= found.keys():
                    break
                await asyncio.sleep(0.1)
            assert PIL.Image.open(io.BytesIO(found[".png"].read_bytes())).size == live_server.warm().world.size
            assert key_logs.read(found[".json"]).start.image.shape == (80, 100, 3)
            # A link cannot hold this image.
            await page.value("document.getElementById('share').click()")
            assert "own image" in await page.value("document.getElementById('notice').textContent")

    asyncio.run(test())


def test_touch_caps_and_queue(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with playing(tmp_path, seats=1) as (page, address, _):
            box = await page.value(
                "(({left, top}) => [left, top])(document.querySelector('.key[data-name=left]').getBoundingClientRect())"
            )
            place = {"x": box[0] + 10, "y": box[1] + 10, "button": "left", "clickCount": 1}
            await page.call("Input.dispatchMouseEvent", type="mousePressed", **place)
            assert await page.value(LIT.format("pressed")) == "left"
            await page.until(f"{LIT.format('applied')} === 'left'")
            await page.call("Input.dispatchMouseEvent", type="mouseReleased", **place)
            assert await page.value(LIT.format("pressed")) == ""
            async with chromium.opened(address) as other:
                cover = "document.getElementById('cover').textContent"
                text = await other.until(f"{cover}.includes('number 1') && {cover}")
                assert "number 1 in the queue of 1; 1 play now" in text
                assert other.problems == []

    asyncio.run(test())


def test_questions_about_the_image(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with playing(tmp_path, answerer=tiny_text_model.answerer()) as (page, _, _):
            await page.value("document.getElementById('question').focus()")
            await page.call("Input.insertText", text="Where is the wall?")
            await page.key("Enter", True, text="\r")
            answer = "document.querySelector('#answers .answer')?.textContent"
            assert await page.until(f"!document.querySelector('#answers .running') && {answer}")
            assert await page.value("document.querySelector('#answers .question').textContent") == "Where is the wall?"
            drawn = "document.querySelector('#answers canvas')"
            assert np.std(await page.value(f"((screen) => {PIXELS})({drawn})")) > 5
            # The keys steer again.
            await page.key("KeyD", True)
            await page.until(f"{LIT.format('applied')} === 'd'")
            await page.key("KeyD", False)

    asyncio.run(test())


def test_the_page_connects_again(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with playing(tmp_path) as (page, _, directing):
            (player,) = directing.players.values()
            assert player.socket is not None
            await player.socket.close()
            await page.until("document.getElementById('notice').textContent.includes('connected again')")
            assert list(directing.players.values()) == [player]
            count = await page.value("play.state.count")
            await page.until(f"play.state.count > {count} + 3")

    asyncio.run(test())
