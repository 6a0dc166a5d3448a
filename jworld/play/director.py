"""The director: gives seats to players, and the model to one after the other. It runs on the event loop.

The model runs in a thread of its own, and frames are encoded in another one, while the model computes the next step.
"""

import asyncio
import concurrent.futures
import pathlib
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jworld.play import answers, images, players, protocol, questions, recording, worker
from jworld.play.connection import Player, Request
from jworld.systems import key_logs, live
from jworld.utils import errors, limits

#: Time that a player without connection keeps its session, in seconds.
GRACE_SECONDS = 15.0
#: Longest time between two looks at players whose time is over, in seconds.
_TICK = 1.0
#: Longest wait for the steps of players at the end, in seconds.
_CLOSING = 3.0
#: Messages that a page sends by itself.
_AUTOMATIC = ("shown",)


class Director:
    """Players and the model that they share.

    Attributes:
      world: the model.
      images: first images by name.
      recordings: finished videos by name.
      players: all players by their id, those without connection included.
    """

    def __init__(
        self,
        world: worker.World,
        first: Sequence[images.FirstImage],
        games: Sequence[worker.Game],
        *,
        start: key_logs.Start,
        model_thread: concurrent.futures.Executor,
        recordings: pathlib.Path,
        answerer: answers.Answerer | None = None,
        turn_seconds: float = limits.PLAY_TURN_SECONDS,
    ) -> None:
        """Set up the director.

        Args:
          world: the model.
          first: images that a player can choose.
          games: sessions, one per seat, which are warm.
          start: first start of every player.
          model_thread: the only thread that uses the models.
          recordings: folder of recordings.
          answerer: model that answers questions about frames, if there is one.
          turn_seconds: time of a player while others wait.
        """
        self.world, self.images, self._start = world, {image.name: image for image in first}, start
        self._folder, self.recordings = recordings, dict[str, pathlib.Path]()
        self.players: dict[str, Player] = {}
        self._free = list(games)
        self._seats: players.Seats[Player] = players.Seats(len(games), turn_seconds=turn_seconds)
        self._turns: players.Turns[Player | questions.Asking] = players.Turns()
        self._questions = questions.Questions(answerer)
        self._model_thread, self._encoding = model_thread, concurrent.futures.ThreadPoolExecutor(1, "encoding")
        self._decoding = concurrent.futures.ThreadPoolExecutor(1, "decoding")
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._handlers: Mapping[str, Any] = {
            "keys": lambda player, values: player.hold(values["held"]),
            "pause": self._pause,
            "step": self._step,
            "pace": self._pace,
            "format": self._format,
            "reset": self._reset,
            "prompt": self._prompt,
            "shown": self._shown,
            "ask": self._questions.receive,
            "record": self._record,
            "log": self._log,
        }

    # Seats

    def join(self, identity: str) -> Player:
        """Return the player with this id, who connects again, or a new one with a seat or a place."""
        player = self.players.get(identity)
        if player is not None and player.socket is not None:
            # A connection that broke without a sign looks open for a while.
            self._spawn(player.socket.close(code=1000, message=b"the player has connected again"))
        if player is None:
            player = Player(self.world, self._start, asks=self._questions.are_answered)
            self.players[player.id] = player
            self._seats.join(player, time.monotonic())
            self._seat()
        return player

    def part(self, player: Player) -> None:
        """Note that a player has lost its connection."""
        self._questions.end(player)
        player.socket, player.left = None, time.monotonic()
        player.hold([])
        player.pacer.clear()
        self._changed.set()

    def welcome(self, player: Player) -> None:
        """Send a player everything about the model, and its own state."""
        world, keys = self.world, self.world.keys
        player.send(
            "welcome",
            protocol=protocol.VERSION,
            id=player.id,
            system=str(world.run.config.system),
            model=world.identity,
            keys=[
                {"name": key.name, "label": key.label, "codes": key.codes, "opposite": key.opposite, "axis": key.axis}
                for key in keys
            ],
            fps=world.fps,
            size=world.size,
            step_frames=world.new_frames,
            delay=world.delay,
            captions=world.describes,
            memory=world.viewed,
            questions=self._questions.are_answered,
            images=[{"name": image.name, "caption": image.caption} for image in self.images.values()],
            steps=world.steps,
            guidance=world.guidance,
            limits={
                "steps": limits.PLAY_STEPS,
                "guidance": limits.PLAY_GUIDANCE,
                "image": limits.PLAY_IMAGE_BYTES,
                "question": limits.PLAY_QUESTION,
            },
            resumed=player.last is not None,
            **self._described(player),
        )
        self._tell_seats()
        self._changed.set()

    def _described(self, player: Player) -> dict[str, Any]:
        start = player.start
        name = next((name for name, image in self.images.items() if image.image is start.image), "own")
        settings = {key: getattr(start, key) for key in ("prompt", "seed", "steps", "guidance")}
        return {"start": {**settings, "image": name}, "paused": player.paused}

    def _seat(self) -> None:
        """Give sessions to those who have got a seat, and take them from those who wait."""
        for player in self._seats.queue:
            self._questions.end(player)
            if player.game is not None and not player.computing:
                self._free.append(player.game)
                player.game = None
        for player in self._seats.playing:
            if player.game is None and self._free:
                player.game = self._free.pop()
                player.request = Request(player.start)
        self._changed.set()

    def _tell_seats(self) -> None:
        playing, waiting = len(self._seats.playing), len(self._seats.queue)
        for player in self.players.values():
            player.send("seat", place=self._seats.place(player), playing=playing, waiting=waiting)

    def _look(self, now: float) -> None:
        """Remove players that have gone, and move those whose time is over."""
        before = self._order()
        for player in [p for p in self.players.values() if p.socket is None and now - p.left > GRACE_SECONDS]:
            if not player.computing:
                self._remove(player, now)
        for player in self._seats.expire(now):
            player.send("notice", text="your time is over while others wait: you are in the queue again")
        for player in self._seats.playing:
            if not player.paused and now - player.active > limits.PLAY_IDLE_SECONDS:
                player.paused = True
                player.send("notice", text="paused, because nothing was pressed for a long time")
                player.send("state", **self._described(player))
        self._seat()
        if self._order() != before:
            self._tell_seats()

    def _order(self) -> list[str]:
        return [player.id for player in (*self._seats.playing, *self._seats.queue)]

    def _remove(self, player: Player, now: float) -> None:
        if player.recording is not None:
            self._spawn(self._finish(player))
        if player.game is not None:
            self._free.append(player.game)
            player.game = None
        self._questions.forget(player)
        del self.players[player.id]
        self._seats.leave(player, now)

    # Turns

    async def run(self) -> None:
        """Give turns until the task is canceled."""
        while True:
            now = time.monotonic()
            self._look(now)
            waits = {player: player.due_in(now) for player in self._seats.playing}
            due: list[Player | questions.Asking] = [player for player, wait in waits.items() if wait <= 0]
            due += self._questions.due(self._seats.playing)
            if due:
                turn = self._turns.next(due)
                if isinstance(turn, Player):
                    await self._turn(turn)
                else:
                    # An answer ends its turn before a step is due, and takes a short one while a step waits.
                    await turn.turn(self._model_thread, min((wait for wait in waits.values() if wait > 0), default=1.0))
                continue
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), min(_TICK, *waits.values()) if waits else _TICK)
            except TimeoutError:
                continue

    async def _turn(self, player: Player) -> None:
        """Compute a start or a step of a player."""
        game = player.game
        assert game is not None
        player.computing += 1
        began, loop = time.monotonic(), asyncio.get_running_loop()
        try:
            if (request := player.request) is not None:
                player.request = None
                await loop.run_in_executor(self._model_thread, game.start, request.start)
                if player.recording is not None:
                    self._spawn(self._finish(player))
                player.begin(request.start, request.script)
                player.computing -= 1
                player.send("started", **self._described(player))
                return
            keys, prompt = player.latch(), player.prompt
            player.prompt = None
            generated = await loop.run_in_executor(self._model_thread, game.generate, keys, prompt)
            decoding = self._decode(player, game, generated, began)
            if not self.world.is_split:
                await asyncio.wait([decoding])
        except errors.UserError as error:
            self._refuse(player, error)
        except Exception as error:
            await self._fail(player, error)

    def _decode(
        self, player: Player, game: worker.Game, generated: worker.Generated, began: float
    ) -> asyncio.Future[worker.Step]:
        """Decode a step; its first frames are queued while the later ones are decoded."""
        loop = asyncio.get_running_loop()
        parts: asyncio.Queue[worker.Part | None] = asyncio.Queue()

        def put(part: worker.Part | None) -> None:
            loop.call_soon_threadsafe(parts.put_nowait, part)

        def decode() -> worker.Step:
            try:
                return game.decode(generated, put)
            finally:
                put(None)

        # With a second device, the next step is generated meanwhile.
        decoding = loop.run_in_executor(self._decoding if self.world.is_split else self._model_thread, decode)
        self._spawn(self._finish_step(player, parts, decoding, began))
        return decoding

    async def _finish_step(
        self,
        player: Player,
        parts: asyncio.Queue[worker.Part | None],
        decoding: asyncio.Future[worker.Step],
        began: float,
    ) -> None:
        """Queue the frames of a step, which end with None, after those of the steps before; then complete it."""
        async with player.in_order:
            player.decoded = 0
            try:
                while (part := await parts.get()) is not None:
                    await self._encode(player, part, began)
                await self._complete(player, await decoding)
            except errors.UserError as error:
                self._refuse(player, error)
            except Exception as error:
                await self._fail(player, error)
            else:
                player.computing -= 1
                self._changed.set()
            player.decoded = 0

    async def _encode(self, player: Player, part: worker.Part, began: float) -> None:
        """Encode some frames of a step, and queue them."""
        loop = asyncio.get_running_loop()
        if player.kind == "auto" and not player.measured:
            player.measured = await loop.run_in_executor(
                self._encoding, protocol.smallest, part.frames[-1], self.world.fps
            )
        start = time.monotonic()
        frames = await loop.run_in_executor(self._encoding, _frames, part, player.image_kind, self.world.size)
        now = time.monotonic()
        player.note_sending(now - start)
        if player.request is None:
            player.deliver(part, frames, began=began, now=now)

    async def _complete(self, player: Player, step: worker.Step) -> None:
        """Record a step whose frames are queued, and send the player a message about it."""
        loop = asyncio.get_running_loop()
        try:
            if player.recording is not None:
                await loop.run_in_executor(self._encoding, player.recording.add, step)
        except errors.UserError as error:
            player.send("error", text=str(error))
            broken, player.recording = player.recording, None
            if broken is not None:
                await loop.run_in_executor(self._encoding, broken.cancel)
        if player.request is None:
            player.complete(step)
        if player.recording is not None and player.recording.is_full:
            player.send("notice", text="the recording is full")
            await self._finish(player)

    def _refuse(self, player: Player, error: errors.UserError) -> None:
        """Pause a player whose step is impossible, and send the reason."""
        player.computing, player.paused = player.computing - 1, True
        player.send("error", text=str(error))
        player.send("state", **self._described(player))
        self._changed.set()

    async def _fail(self, player: Player, error: Exception) -> None:
        """Report a defect, and end the player's connection; the others play on."""
        traceback.print_exception(error, file=sys.stderr)
        player.computing, player.paused = player.computing - 1, True
        player.send("error", text=f"the model failed ({errors.one_line(error)}): reset, or start the server again")
        self._changed.set()

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Finish recordings, and what is being encoded."""
        for player in self.players.values():
            if player.recording is not None:
                await self._finish(player)
        # Steps that are decoded or encoded end, but nobody waits for a compilation.
        tasks = set(self._tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_CLOSING)
            for task in late:
                task.cancel()
        self._encoding.shutdown()
        self._decoding.shutdown(wait=False)

    # Messages of players

    def receive(self, player: Player, text: str) -> None:
        """Do what a message asks for.

        Raises:
          MessageError: it is not a message, or cannot be done.
        """
        message = protocol.parse(text)
        if message.kind not in _AUTOMATIC:
            player.active = time.monotonic()
        self._handlers[message.kind](player, message.values)
        self._changed.set()

    async def receive_image(self, player: Player, content: bytes) -> None:
        """Take a first image of a player; `MessageError` if it is none."""
        now = time.monotonic()
        if now - player.uploaded < limits.PLAY_IMAGE_SECONDS:
            raise protocol.MessageError("images come too fast: wait a second")
        player.uploaded = now
        try:
            player.upload = await asyncio.get_running_loop().run_in_executor(
                self._encoding, key_logs.read_image, content
            )
        except ValueError as error:
            raise protocol.MessageError(str(error)) from error
        player.send("image", size=[player.upload.shape[1], player.upload.shape[0]])

    def _pause(self, player: Player, values: Mapping[str, Any]) -> None:
        player.paused, player.wanted = values["on"], 0
        player.send("state", **self._described(player))

    def _step(self, player: Player, values: Mapping[str, Any]) -> None:
        if not player.paused:
            raise protocol.MessageError("step: pause first")
        if "held" in values:
            player.hold(values["held"])
        player.wanted = 1

    def _pace(self, player: Player, values: Mapping[str, Any]) -> None:
        player.pacer.paced = values["on"]

    def _format(self, player: Player, values: Mapping[str, Any]) -> None:
        player.kind, player.measured = values["name"], ""

    def _shown(self, player: Player, values: Mapping[str, Any]) -> None:
        player.shown = min(max(player.shown, values["frame"]), player.sent)
        player.wake.set()

    def _reset(self, player: Player, values: Mapping[str, Any]) -> None:
        image: np.ndarray | None = player.start.image
        if (name := values.get("image")) == "own":
            if player.upload is None:
                raise protocol.MessageError("reset: send an image first")
            image = player.upload
        elif name is not None:
            if name not in self.images:
                raise protocol.MessageError(f"reset: there is no image {name!r}")
            image = self.images[name].image
        script = [(run[0], run[1]) for run in values.get("script", [])]
        for action, _ in script:
            try:
                live.split(self.world.keys, action)
            except ValueError as error:
                raise protocol.MessageError(f"reset: {error}") from error
        player.request = Request(protocol.start(values, player.start, image), tuple(script))
        player.measured, player.wanted = "", 0

    def _prompt(self, player: Player, values: Mapping[str, Any]) -> None:
        if not self.world.describes:
            raise protocol.MessageError("prompt: the caption of this model can only change with a reset")
        player.prompt = values["text"]

    def _record(self, player: Player, values: Mapping[str, Any]) -> None:
        if not values["on"]:
            if player.recording is not None:
                self._spawn(self._finish(player))
        elif player.recording is None:
            if player.last is None:
                raise protocol.MessageError("record: play at least one step first")
            self._spawn(self._begin_recording(player, player.last))

    async def _begin_recording(self, player: Player, last: worker.Step) -> None:
        caption = player.start.prompt
        try:
            made = await asyncio.get_running_loop().run_in_executor(
                self._encoding, lambda: recording.Recording(self._folder, self.world, last, caption=caption)
            )
        except errors.UserError as error:
            player.send("error", text=str(error))
            return
        if player.last is not last or player.recording is not None:
            # A step came meanwhile: begin with that one.
            await asyncio.get_running_loop().run_in_executor(self._encoding, made.cancel)
            if player.recording is None and player.last is not None:
                await self._begin_recording(player, player.last)
            return
        player.recording = made
        player.send("recording", on=True, name=made.name)

    async def _finish(self, player: Player) -> None:
        made, player.recording = player.recording, None
        if made is None:
            return
        try:
            path = await asyncio.get_running_loop().run_in_executor(self._encoding, made.finish)
        except errors.UserError as error:
            player.send("error", text=str(error))
            return
        self.recordings[made.name] = path
        kind = "episode" if self.world.viewed else "video"
        player.send("recording", on=False, name=made.name, frames=made.frames, path=str(path), content=kind)

    def _log(self, player: Player, values: Mapping[str, Any]) -> None:
        if not player.entries:
            raise protocol.MessageError("log: play at least one step first")
        log = key_logs.KeyLog(model=self.world.identity, start=player.start, entries=list(player.entries))
        self._spawn(self._send_log(player, log))

    async def _send_log(self, player: Player, log: key_logs.KeyLog) -> None:
        content = await asyncio.get_running_loop().run_in_executor(self._encoding, log.to_json)
        player.send("log", content=content)


def _frames(part: worker.Part, kind: str, size: tuple[int, int]) -> list[protocol.Frame]:
    """Encode some frames of a step."""
    return [
        protocol.Frame(
            step=part.number,
            frame=part.first_frame + i,
            action=part.action,
            kind=kind,
            size=size,
            content=protocol.encode(image, kind),
        )
        for i, image in enumerate(part.frames)
    ]
