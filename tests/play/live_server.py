"""A server of the starter model within a test's event loop, and a client that speaks its protocol."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import numpy as np

import jworld
from jworld.play import answers, director, images, protocol, server, worker
from jworld.systems import key_logs, runs

ROOT = pathlib.Path(__file__).parents[2]
#: Time that a busy machine may take for one message.
SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Warm:
    """The starter model with two sessions, which all tests of a process share."""

    world: worker.World
    games: Sequence[worker.Game]
    first: list[images.FirstImage]
    start: key_logs.Start
    thread: concurrent.futures.ThreadPoolExecutor


@functools.cache
def warm(checkpoint: str = str(ROOT / "assets" / "starter"), players: int = 2) -> Warm:
    run = jworld.load(checkpoint)
    world = worker.World(run)
    # The motion of the keys is measured in rooms, and ViZDoom's views need ViZDoom.
    first = images.rendered(run.config, world.size, source="rooms")[:2]
    start = key_logs.Start(image=first[0].image, prompt=first[0].caption)
    games = [worker.Game(world) for _ in range(players)]
    thread = concurrent.futures.ThreadPoolExecutor(1)
    thread.submit(world.warm, games, start).result()
    return Warm(world, games, first, start, thread)


def warm_run(run: runs.Run, players: int = 1) -> Warm:
    """Return another model with sessions, whose first image is noise in squares."""
    world = worker.World(run)
    squares = np.random.default_rng(3).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    first = [images.FirstImage(name="squares", image=np.kron(squares, np.ones((10, 10, 1), np.uint8)))]
    start = key_logs.Start(image=first[0].image)
    games = [worker.Game(world) for _ in range(players)]
    thread = concurrent.futures.ThreadPoolExecutor(1)
    thread.submit(world.warm, games, start).result()
    return Warm(world, games, first, start, thread)


def frame_shape() -> tuple[int, int, int]:
    """Return height, width and channels of the model's frames."""
    width, height = warm().world.size
    return (height, width, 3)


def rendered_size() -> tuple[int, int]:
    """Return width and height of a first image."""
    height, width, _ = warm().first[0].image.shape
    return (width, height)


@contextlib.asynccontextmanager
async def serving(
    folder: pathlib.Path,
    *,
    seats: int = 2,
    turn_seconds: float = 1000.0,
    token: str | None = None,
    answerer: answers.Answerer | None = None,
    model: Warm | None = None,
) -> AsyncIterator[tuple[str, director.Director]]:
    """Serve the starter model, or another one; yields the address and the director."""
    model = model or warm()
    directing = director.Director(
        model.world,
        model.first,
        model.games[:seats],
        start=model.start,
        model_thread=model.thread,
        recordings=folder,
        answerer=answerer,
        turn_seconds=turn_seconds,
    )
    async with server.Server(directing, host="127.0.0.1", port=0, token=token).listening() as address:
        yield address, directing


class Client:
    """A player without a page."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.messages: list[dict[str, Any]] = []
        self.frames: list[protocol.Frame] = []
        self.sent: list[float] = []
        self._lockstep = False

    async def send(self, kind: str, **values: Any) -> None:
        await self.socket.send_str(json.dumps({"type": kind, **values}))

    async def receive(self, *, acknowledge: bool = True) -> dict[str, Any] | protocol.Frame:
        """Return the next message or frame."""
        message = await asyncio.wait_for(self.socket.receive(), SECONDS)
        if message.type is aiohttp.WSMsgType.BINARY:
            frame, sent = protocol.unpack(message.data)
            self.frames.append(frame)
            self.sent.append(sent)
            if acknowledge and not self._lockstep:
                await self.send("shown", frame=frame.frame)
            return frame
        assert message.type is aiohttp.WSMsgType.TEXT, f"closed with {self.socket.close_code}: {message.extra}"
        found: dict[str, Any] = json.loads(message.data)
        self.messages.append(found)
        return found

    async def until(self, kind: str, **values: Any) -> dict[str, Any]:
        """Receive until a message of this kind with these values, and return it."""
        while True:
            found = await self.receive()
            if isinstance(found, dict) and found["type"] == kind and values.items() <= found.items():
                return found

    async def lockstep(self, **start: Any) -> None:
        """Pause, and start again with frames of exact pixels that come at once."""
        self._lockstep = True
        await self.send("pause", on=True)
        await self.send("pace", on=False)
        await self.send("format", name="raw")
        await self.until("state", paused=True)
        if not any(message["type"] == "started" for message in self.messages):
            await self.until("started")
        await self.send("reset", **start)
        await self.until("started")

    async def resume(self) -> None:
        """Play live again after lockstep."""
        self._lockstep = False
        await self.send("pace", on=True)
        await self.send("pause", on=False)

    async def step(self, *held: str) -> np.ndarray:
        """Compute a step while these keys are held, and return its frames uint8 [T, H, W, 3]."""
        await self.send("step", held=list(held))
        facts = await self.until("computed")
        found: list[np.ndarray] = []
        while len(found) < facts["frames"]:
            frame = await self.receive()
            if isinstance(frame, protocol.Frame) and frame.step == facts["step"]:
                found.append(protocol.pixels(frame))
        # Once is enough for all frames of a step.
        await self.send("shown", frame=self.frames[-1].frame)
        return np.stack(found)


@contextlib.asynccontextmanager
async def client(address: str, player: str = "", **options: Any) -> AsyncIterator[Client]:
    """Connect; the first message has been received."""
    base, _, query = address.partition("?")
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{base}socket?{query}&player={player}", max_msg_size=0, **options) as socket,
    ):
        found = Client(socket)
        await found.until("welcome")
        yield found
