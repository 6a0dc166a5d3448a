"""One connected player: its keys, its frames and its messages. All of this runs on the event loop."""

import asyncio
import collections
import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from aiohttp import web

from jworld.play import pacing, players, protocol, recording, worker
from jworld.systems import key_logs, live
from jworld.utils import limits

#: Messages that wait for a connection, at most; more belong to a player that does not read.
_OUTGOING = 200
#: Steps whose frames were sent but not reported as shown, at most.
_UNSHOWN = 2
#: Latest steps whose frames can be asked about: those that are shown, sent and waiting.
_ASKED = 6


@dataclasses.dataclass(frozen=True)
class Request:
    """A new start that a player asked for, with the actions that are replayed from a link."""

    start: key_logs.Start
    script: tuple[tuple[str, int], ...] = ()


class Player:
    """A player, who keeps its session for some seconds while it is not connected.

    Attributes:
      id: secret with which it connects again.
      socket: its connection; None while it is not connected.
      game: its session; None while it waits for a seat.
      computing: steps that are being computed or encoded, at most as many as there are devices.
      decoded: frames of the first of these steps that were added.
      wanted: steps that it asked for while it is paused: 0 or 1.
      start: settings of the running session.
      last: latest step.
      upload: its own first image.
      recording: what it records; None if it does not.
    """

    def __init__(self, world: worker.World, start: key_logs.Start, *, asks: bool = False) -> None:
        """Set up a player who is not connected; with `asks`, frames are stored for questions about them."""
        now = time.monotonic()
        self._asks, self._recent = asks, collections.deque[worker.Part]()
        self._world = world
        self.id = secrets.token_urlsafe(16)
        self.last_turn, self.seated = 0, now
        self.socket: web.WebSocketResponse | None = None
        self.left = now
        self.wake = asyncio.Event()
        self.pacer: pacing.Pacer[protocol.Frame] = pacing.Pacer(world.fps)
        self.bucket = players.Bucket(limits.PLAY_MESSAGES, limits.PLAY_BURST, now)
        self.active, self.uploaded = now, -limits.PLAY_IMAGE_SECONDS
        self.upload: np.ndarray | None = None
        self.game: worker.Game | None = None
        self.paused = False
        self.computing = self.decoded = 0
        self.in_order = asyncio.Lock()
        self.wanted = 0
        self.kind, self.measured = "auto", ""
        self.request: Request | None = Request(start)
        self.recording: recording.Recording | None = None
        self._outgoing: collections.deque[str] = collections.deque()
        self._held: set[str] = set()
        self._tapped: set[str] = set()
        self._send_seconds = 0.0
        self.begin(start, ())

    def begin(self, start: key_logs.Start, script: Sequence[tuple[str, int]]) -> None:
        """Note that the session started again."""
        self.start = start
        self.entries: list[key_logs.Entry] = []
        self.last: worker.Step | None = None
        self.prompt: str | None = None
        self._recent.clear()
        self._kept: list[protocol.Frame] = []
        self._late, self._bytes = 0.0, 0
        self._script = collections.deque(script)
        self.sent = self.shown = -1
        self.pacer.clear()

    # Keys and time

    def hold(self, names: Sequence[str]) -> None:
        """Set the held keys; those pressed since the last step count for the next one, even if released."""
        self._tapped |= set(names) - self._held
        self._held = set(names)

    def latch(self) -> list[str]:
        """Return the keys of the next step: those of the script of a link, or else those that are held."""
        self.wanted = 0
        if self._script:
            name, count = self._script[0]
            self._script[0] = (name, count - 1)
            if count <= 1:
                self._script.popleft()
            self._tapped = set()
            return live.split(self._world.keys, name)
        # A tap loses against a held key that opposes it.
        held = live.effective(self._world.keys, self._held)
        opposed = {key.opposite for key in self._world.keys if key.name in held}
        keys = live.effective(self._world.keys, {*held, *(self._tapped - opposed)})
        self._tapped = set()
        return keys

    def due_in(self, now: float) -> float:
        """Return the seconds until this player needs the model; infinity if only an event changes that."""
        if self.socket is None or self.game is None or self.computing > self._world.is_split:
            return float("inf")
        if self.request is not None:
            return float("inf") if self.computing else 0.0
        if (self.paused and not self.wanted) or self.stalled:
            return float("inf")
        return self.pacer.due_in(now, max(self.computing * self._world.new_frames - self.decoded, 0))

    @property
    def stalled(self) -> bool:
        """True if frames of several steps were sent that the player has not shown yet."""
        return self.sent - self.shown > _UNSHOWN * max(self._world.new_frames, 1)

    # Messages

    def send(self, message: str, **values: Any) -> None:
        """Queue a message; a player that does not read its messages is disconnected."""
        if self.socket is None:
            return
        if len(self._outgoing) >= _OUTGOING:
            self.wake.set()
            self._outgoing.clear()
            self._closing = asyncio.ensure_future(self.socket.close(code=1008, message=b"messages were not read"))
            return
        self._outgoing.append(json.dumps({"type": message, **values}))
        self.wake.set()

    def deliver(self, part: worker.Part, frames: list[protocol.Frame], *, began: float, now: float) -> None:
        """Queue frames of a step whose computation began at some time.

        Without pace they are kept until the step is complete, so that a program knows how many frames it waits for.
        """
        if not self.decoded:
            self._late, self._bytes = 0.0, 0
            self.pacer.begin(max(len(frames), self._world.new_frames), now)
        # Frames of a later part are shown later.
        self._late = max(self._late, now - began - self.decoded / self._world.fps)
        self._bytes += sum(len(frame.content) for frame in frames)
        if self._asks:
            self._recent.append(part)
            while part.first_frame - self._recent[0].first_frame > _ASKED * self._world.new_frames:
                self._recent.popleft()
        self.decoded += len(frames)
        if self._kept or not self.pacer.paced:
            self._kept += frames
        else:
            self.pacer.add(frames, now)
            self.wake.set()

    @property
    def image_kind(self) -> str:
        """Format of its images: the one that it asked for, or the smallest one."""
        return self.measured if self.kind == "auto" else self.kind

    def complete(self, step: worker.Step) -> None:
        """Queue a message about a step whose frames were delivered."""
        self.last = step
        if len(self.entries) < limits.PLAY_LOG:
            self.entries.append(step.entry)
        if not step.compile:
            self.pacer.measure(self._late)
        view = step.view
        self.send(
            "computed",
            step=step.number,
            action=step.action,
            first_frame=step.first_frame,
            frames=len(step.frames),
            format=self.image_kind,
            bytes=self._bytes,
            seconds={
                "denoise": round(step.denoise, 5),
                "decode": round(step.decode, 5),
                "compile": round(step.compile, 5),
                "send": round(self._send_seconds, 5),
            },
            dropped=self.pacer.dropped,
            replaying=bool(self._script),
            memory=None if view is None else {"first": view.first, "context": view.context, "cameras": _poses(view)},
        )
        self._send_seconds = 0.0
        self.pacer.add(self._kept, time.monotonic())
        self._kept = []

    def image(self, frame: int) -> np.ndarray | None:
        """Return one of the latest frames that were sent, uint8 [H, W, 3], or None."""
        for part in self._recent:
            if frame <= self.sent and 0 <= frame - part.first_frame < len(part.frames):
                found: np.ndarray = part.frames[frame - part.first_frame]
                return found
        return None

    def note_sending(self, seconds: float) -> None:
        """Count time for encoding or sending frames."""
        self._send_seconds += seconds

    async def pump(self, socket: web.WebSocketResponse) -> None:
        """Send messages, and frames when their time has come, until the connection closes."""
        # A connection that breaks ends the other side of this task, too.
        with contextlib.suppress(ConnectionError):
            while not socket.closed:
                await self._send_next(socket)

    async def _send_next(self, socket: web.WebSocketResponse) -> None:
        """Send the messages that wait and the frame whose time has come, or wait for one."""
        self.wake.clear()
        while self._outgoing:
            await socket.send_str(self._outgoing.popleft())
        now = time.monotonic()
        frame = None if self.stalled else self.pacer.take(now)
        if frame is not None:
            self.sent = frame.frame
            await socket.send_bytes(frame.pack(time.time()))
            self.note_sending(time.monotonic() - now)
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wake.wait(), None if self.stalled else self.pacer.wait(now))


def _poses(view: live.View) -> list[list[float]]:
    """Return position x, z and direction of view x, z of every camera, seen from above."""
    c2w = np.linalg.inv(view.w2c)
    rows = np.stack([c2w[:, 0, 3], c2w[:, 2, 3], c2w[:, 0, 2], c2w[:, 2, 2]], axis=1)
    rounded: list[list[float]] = np.round(rows, 4).tolist()
    return rounded
