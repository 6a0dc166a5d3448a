"""Measure `jworld play`: a server and a player in this process, joined by a WebSocket.

    python benchmarks/play.py --checkpoint assets/starter --seconds 60

The player presses a key, holds it for a random time and releases it. Printed are percentiles of the parts of a step,
the time from a key press to the first image that shows it, and the frames that arrive per second.

With --devices 2 the steps follow each other without a pause, and the overlap of denoising and decoding is printed: on
virtual devices of one CPU, XLA_FLAGS=--xla_force_host_platform_device_count=2, times say nothing about a second device.
"""

import asyncio
import concurrent.futures
import json
import os
import pathlib
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
import numpy as np

import jworld
from jworld.play import director, images, protocol, server, worker
from jworld.systems import key_logs, live
from jworld.utils import arguments as command_line
from jworld.utils import compilation


class TimedGame(worker.Game):
    """A session that notes when it generates and decodes, as (start, end) in seconds."""

    def __init__(self, world: worker.World) -> None:
        super().__init__(world)
        self.generated: list[tuple[float, float]] = []
        self.decoded: list[tuple[float, float]] = []

    def generate(self, keys: Sequence[str], prompt: str | None = None) -> worker.Generated:
        began = time.monotonic()
        found = super().generate(keys, prompt)
        self.generated.append((began, time.monotonic()))
        return found

    def decode(
        self, generated: worker.Generated, take: Callable[[worker.Part], None] = lambda part: None
    ) -> worker.Step:
        began = time.monotonic()
        found = super().decode(generated, take)
        self.decoded.append((began, time.monotonic()))
        return found

    def overlap(self) -> dict[str, Any]:
        """Return the share of the time of decoding in which the next step was generated, and the reverse."""
        both = sum(
            max(min(a[1], b[1]) - max(a[0], b[0]), 0.0)
            for index, b in enumerate(self.decoded)
            for a in self.generated[index : index + 3]
        )
        spent = {
            name: sum(end - start for start, end in spans)
            for name, spans in (("decoding", self.decoded), ("denoising", self.generated))
        }
        return {f"share_of_{name}_overlapped": round(both / seconds, 3) for name, seconds in spent.items()}


class Player:
    """A player that presses keys at random times, and measures."""

    def __init__(self, world: worker.World) -> None:
        self._world, self._random = world, random.Random(0)
        self.steps: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.latencies: list[float] = []
        self.bytes = 0
        self._actions: dict[int, str] = {}
        self._pressed: tuple[str, float] | None = None

    async def play(self, address: str, seconds: float, *, paced: bool = True) -> None:
        """Play for some time; without `paced` a step follows the one before at once."""
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{address}socket", max_msg_size=0) as socket:
            await socket.send_json({"type": "pace", "on": paced})
            pressing = asyncio.ensure_future(self._press(socket))
            ending = time.monotonic() + seconds
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    await self._frame(socket, message.data)
                elif (facts := json.loads(message.data))["type"] == "computed":
                    self.steps.append(facts)
                if time.monotonic() > ending:
                    break
            pressing.cancel()

    async def _frame(self, socket: aiohttp.ClientWebSocketResponse, data: bytes) -> None:
        frame, _ = protocol.unpack(data)
        now = time.monotonic()
        self.times.append(now)
        self.bytes += len(data)
        self._actions[frame.step] = frame.action
        shown = self._actions.get(frame.step - (self._world.delay - 1), "none").split("+")
        if self._pressed is not None and self._pressed[0] in shown:
            self.latencies.append(now - self._pressed[1])
            self._pressed = None
        await socket.send_json({"type": "shown", "frame": frame.frame})

    async def _press(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            key = self._random.choice(self._world.keys).name
            self._pressed = (key, time.monotonic())
            await socket.send_json({"type": "keys", "held": [key]})
            while self._pressed is not None:
                await asyncio.sleep(0.02)
            await socket.send_json({"type": "keys", "held": []})
            # Until no frame shows the key any more, and then at any time of a step.
            step = self._world.new_frames / self._world.fps
            await asyncio.sleep(step * (2.5 + self._random.random()))


def percentiles(values: list[float]) -> dict[str, float]:
    """Return p50 and p95 in milliseconds."""
    return {f"p{share}": round(1000 * float(np.percentile(values, share)), 1) for share in (50, 95)}


def measure(player: Player, world: worker.World) -> dict[str, Any]:
    """Return all figures."""
    steps = [step for step in player.steps if not step["seconds"]["compile"]]
    parts = {name: [step["seconds"][name] for step in steps] for name in ("denoise", "decode", "send")}
    model = [a + b for a, b in zip(parts["denoise"], parts["decode"], strict=True)]
    gaps = np.diff(player.times)
    return {
        "frames_per_second": round((len(player.times) - 1) / (player.times[-1] - player.times[0]), 2),
        "model_rate": world.fps,
        "model_alone_frames_per_second": round(world.new_frames / float(np.mean(model)), 1),
        "step_seconds": round(world.new_frames / world.fps, 3),
        **{f"{name}_ms": percentiles(values) for name, values in parts.items()},
        "key_to_image_ms": percentiles(player.latencies),
        "gap_of_frames_ms": percentiles(gaps.tolist()),
        "send_share_of_step": round(float(np.mean(parts["send"])) * world.fps / world.new_frames, 4),
        "dropped": player.steps[-1]["dropped"],
        "presses": len(player.latencies),
        "bytes_per_frame": round(player.bytes / len(player.times)),
        "load_of_machine": round(os.getloadavg()[0], 1),
    }


async def run(checkpoint: str, seconds: float, devices: int) -> dict[str, Any]:
    """Serve a checkpoint to one player."""
    opened = jworld.load(checkpoint)
    world = worker.World(opened, decoder=worker.second_device(devices, live.live_system(opened.system, opened.config)))
    first = images.rendered(opened.config, world.size)
    start = key_logs.Start(image=first[0].image, prompt=first[0].caption)
    game, thread = TimedGame(world), concurrent.futures.ThreadPoolExecutor(1)
    thread.submit(world.warm, [game], start).result()
    game.generated, game.decoded = [], []
    player = Player(world)
    with tempfile.TemporaryDirectory() as folder:
        directing = director.Director(
            world, first, [game], start=start, model_thread=thread, recordings=pathlib.Path(folder)
        )
        async with server.Server(directing, host="127.0.0.1", port=0).listening() as address:
            await player.play(address, seconds, paced=devices == 1)
    if devices == 1:
        return measure(player, world)
    return {"devices": devices, "steps": len(game.decoded), **game.overlap()}


def main() -> None:
    parser = command_line.Parser("python benchmarks/play.py", __doc__ or "")
    parser.add_argument("--checkpoint", default="assets/starter", metavar="DIR", help="folder of a run")
    parser.add_argument("--seconds", type=float, default=60.0, help="time to play")
    parser.add_argument("--devices", type=int, choices=(1, 2), default=1, help="devices of the model")
    parser.add_argument("--json", type=pathlib.Path, help="file to write (default: none)")
    arguments = parser.parse()
    compilation.use_cache()
    found = asyncio.run(run(arguments.checkpoint, arguments.seconds, arguments.devices))
    for name, value in found.items():
        print(f"{name:32} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
