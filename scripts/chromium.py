"""A headless Chromium, driven over its DevTools protocol, for tests of the page and images of it."""

import asyncio
import base64
import contextlib
import itertools
import json
import pathlib
import shutil
import tempfile
from collections.abc import AsyncIterator
from typing import Any

import aiohttp

#: Debian's name, and those of other distributions.
NAMES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--mute-audio",
    "--remote-debugging-port=0",
    "--window-size=1180,900",
)
_SECONDS = 60.0


def find() -> str | None:
    """Return the program, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.problems: list[str] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol; messages of the page's console that are errors go to `problems`."""
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            answer = await asyncio.wait_for(self._socket.receive_json(), _SECONDS)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("method") == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(event["params"]["exceptionDetails"])[:500])
        if event.get("method") == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
            self.problems.append(event["params"]["entry"]["text"])

    async def open(self, address: str) -> None:
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=address)

    async def value(self, expression: str) -> Any:
        """Evaluate JavaScript, and wait for a promise."""
        found = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, expression: str, seconds: float = _SECONDS) -> Any:
        """Wait until JavaScript has a true value, and return it; the page's objects may not be there yet."""
        for _ in range(int(seconds / 0.05)):
            if found := await self.value(f"globalThis.play && ({expression})"):
                return found
            await asyncio.sleep(0.05)
        raise AssertionError(f"{expression} is still false; problems: {self.problems}")

    async def key(self, code: str, down: bool, *, text: str = "") -> None:
        kind = ("keyDown" if text else "rawKeyDown") if down else "keyUp"
        name = code if text else code.removeprefix("Key").lower()
        await self.call("Input.dispatchKeyEvent", type=kind, code=code, key=name, text=text)

    async def screenshot(self, path: pathlib.Path) -> None:
        found = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(found["data"]))


@contextlib.asynccontextmanager
async def opened(address: str) -> AsyncIterator[Page]:
    """Start Chromium with a page, and end it."""
    program = find()
    assert program is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            program,
            *_FLAGS,
            f"--user-data-dir={profile}",
            "about:blank",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            port = await _port(pathlib.Path(profile) / "DevToolsActivePort")
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                    target = next(each for each in await answer.json() if each["type"] == "page")
                async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    page = Page(socket)
                    await page.open(address)
                    yield page
        finally:
            process.terminate()
            await process.wait()


async def _port(file: pathlib.Path) -> int:
    for _ in range(int(_SECONDS / 0.1)):
        if file.is_file() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        await asyncio.sleep(0.1)
    raise AssertionError("Chromium did not start")
