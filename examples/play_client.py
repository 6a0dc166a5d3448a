"""Steer a running `jworld play` from Python: walks a square and saves what it saw as walk.mp4.

    jworld play --checkpoint assets/starter
    python examples/play_client.py [ADDRESS]

docs/play.md describes the messages. It needs `pip install 'jworld[play]'`.
"""

import asyncio
import json
import sys

import aiohttp
import imageio.v3 as iio

from jworld.play import protocol

PATH = ["w", "w", "right", "right", "right", "w", "w", "left", "none"]


async def play(address: str) -> None:
    base, _, query = address.partition("?")
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{base}socket?{query}", max_msg_size=0) as socket,
    ):
        # Paused and without pace, every "step" computes one step, whose frames come at once.
        for message in ({"type": "pause", "on": True}, {"type": "pace", "on": False}, {"type": "reset", "seed": 1}):
            await socket.send_json(message)
        frames, path, fps, last = [], iter(PATH), 16.0, -1
        await socket.send_json({"type": "step", "held": next(path).split("+")})
        async for message in socket:
            if message.type is aiohttp.WSMsgType.BINARY:
                frame, _ = protocol.unpack(message.data)
                frames.append(protocol.pixels(frame))
                if frame.frame == last:
                    await socket.send_json({"type": "shown", "frame": last})
                    if (keys := next(path, None)) is None:
                        break
                    await socket.send_json({"type": "step", "held": keys.split("+")})
                continue
            facts = json.loads(message.data)
            if facts["type"] == "welcome":
                fps = facts["fps"]
            elif facts["type"] == "error":
                sys.exit(facts["text"])
            elif facts["type"] == "computed":
                print(facts["step"], facts["action"], facts["seconds"])
                last = facts["first_frame"] + facts["frames"] - 1
    iio.imwrite("walk.mp4", frames, fps=fps)
    print(f"walk.mp4: {len(frames)} frames")


if __name__ == "__main__":
    asyncio.run(play(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000/"))
