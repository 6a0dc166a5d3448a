"""The server of `jworld play` with the starter model: what players press, see and get, and what it refuses."""

import asyncio
import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import threading
import unittest.mock
from collections.abc import Callable, Coroutine
from typing import Any

import aiohttp
import live_server
import numpy as np
import PIL.Image
import pytest
import tiny_text_model

from jworld.cameras import poses
from jworld.data.recording import episodes
from jworld.evaluation import motion
from jworld.play import answers, director, questions, server, worker
from jworld.systems import generation, key_logs
from jworld.utils import limits

ROOT = pathlib.Path(__file__).parents[2]


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a coroutine as a test; fixtures come through its signature."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


def png(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


async def get(address: str, path: str = "", **options: Any) -> tuple[int, bytes, dict[str, str]]:
    base, _, query = address.partition("?")
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{base}{path}?{query}", **options) as answer,
    ):
        return answer.status, await answer.read(), dict(answer.headers)


@in_loop
async def test_page_and_images(tmp_path: pathlib.Path) -> None:
    async with live_server.serving(tmp_path) as (address, _):
        status, page, headers = await get(address)
        assert (status, headers["Content-Type"]) == (200, "text/html")
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        for name in ("style.css", "app.js", "protocol.js", "controls.js", "memory.js"):
            assert (await get(address, f"page/{name}"))[0] == 200
        # Nothing comes from elsewhere: the page works offline.
        whole = page + b"".join(path.read_bytes() for path in server.PAGE.iterdir())
        assert b"https://" not in whole
        assert b"http://" not in whole
        status, image, _ = await get(address, "images/view-1.png")
        assert PIL.Image.open(io.BytesIO(image)).size == live_server.rendered_size()
        for missing in ("images/x.png", "page/..%2Fserver.py", "page/none.js", "recordings/x.mp4", "etc/passwd"):
            assert (await get(address, missing))[0] == 404


@in_loop
async def test_keys_change_the_picture_as_they_say(tmp_path: pathlib.Path) -> None:
    meter = motion.MotionMeter.load(ROOT / "assets" / "motion" / "rooms.safetensors")
    turns, forward = {}, {}
    async with live_server.serving(tmp_path) as (address, _), live_server.client(address) as player:
        for keys in ((), ("right",), ("left",), ("w",), ("s",)):
            await player.lockstep(seed=1, image="view-1")
            video = np.concatenate([await player.step(), await player.step(*keys)])
            numbers = meter(video).numbers[-4:].mean(axis=0)
            name = "".join(keys)
            forward[name], turns[name] = float(numbers[1]), float(numbers[2])
        # A held key turns by 8 degrees or walks 0.24 units per latent, which the small model does roughly.
        assert turns["right"] > turns[""] + 1.5 > turns["left"] + 3
        assert forward["w"] > forward[""] + 0.05 > forward["s"] + 0.1
        assert [frame.action for frame in player.frames[-16:]] == ["s"] * 16
        # The same seed and keys give the same frames, and other ones do not.
        await player.lockstep(seed=1, image="view-1")
        again = np.concatenate([await player.step(), await player.step("s")])
        np.testing.assert_array_equal(again, video)
        await player.lockstep(seed=2, image="view-1")
        assert (await player.step() != again[:13]).any()


@in_loop
async def test_released_keys_and_taps(tmp_path: pathlib.Path) -> None:
    async with live_server.serving(tmp_path) as (address, _), live_server.client(address) as player:
        await player.lockstep()
        for held in (["w", "right"], ["w"], ["w", "s"], []):
            await player.send("keys", held=held)
        # Tapped keys count for one step; of held ones that oppose each other none does.
        await player.send("step")
        assert (await player.until("computed"))["action"] == "right"
        await player.step()
        assert player.messages[-1]["action"] == "none"


@in_loop
async def test_first_frames_come_while_the_last_ones_are_decoded(tmp_path: pathlib.Path) -> None:
    """With pace; without, the message about a step comes first, so that a program knows how many frames to expect."""
    async with live_server.serving(tmp_path) as (address, directing), live_server.client(address) as player:
        await player.until("computed", step=0)
        (state,) = directing.players.values()
        assert state.game is not None
        decode, first, shown = state.game.decode, threading.Event(), threading.Event()

        def slow(generated: worker.Generated, take: Callable[[worker.Part], None]) -> worker.Step:
            def passed(part: worker.Part) -> None:
                take(part)
                first.set()
                # Only the player ends this wait, when it has the first frame.
                assert shown.wait(live_server.SECONDS)

            return decode(generated, passed)

        with unittest.mock.patch.object(state.game, "decode", slow):
            while not first.is_set():
                await player.receive()
            # As many steps are complete as there are entries, so this is the number of the one that is decoded.
            while player.frames[-1].step < len(state.entries):
                await player.receive()
            # It belongs to a step about which no message has come.
            assert not any(message.get("step") == player.frames[-1].step for message in player.messages)
            shown.set()
            await player.until("computed", step=player.frames[-1].step)
        await player.lockstep()
        await player.send("step", held=[])
        before = len(player.frames)
        await player.until("computed", step=0)
        assert len(player.frames) == before


@in_loop
async def test_live_frames_are_paced(tmp_path: pathlib.Path) -> None:
    async with live_server.serving(tmp_path) as (address, _), live_server.client(address) as player:
        await player.until("computed", step=1)
        await player.send("keys", held=["right"])
        while not player.frames or player.frames[-1].action != "right":
            await player.receive()
        numbers = [frame.frame for frame in player.frames]
        assert numbers == sorted(set(numbers))
        span = player.sent[-1] - player.sent[0]
        # Never faster than the model's rate, which is 16 frames per second.
        assert span > 0.9 * (len(numbers) - 1) / 16
        await player.send("pause", on=True)
        await player.until("state", paused=True)


@in_loop
async def test_replay_of_a_link_then_keys(tmp_path: pathlib.Path) -> None:
    async with live_server.serving(tmp_path) as (address, _), live_server.client(address) as player:
        await player.lockstep(seed=5)
        played = [await player.step("w"), await player.step("w"), await player.step("left")]
        await player.lockstep(seed=5, script=[["w", 2], ["left", 1]])
        for frames in played:
            np.testing.assert_array_equal(await player.step("s"), frames)
        await player.step("right")
        assert player.messages[-1]["action"] == "right"
        await player.send("reset", script=[["w+s", 1]])
        assert "not an action" in (await player.until("error"))["text"]


@in_loop
async def test_a_key_log_makes_the_same_frames_again(tmp_path: pathlib.Path) -> None:
    model = live_server.warm()
    async with live_server.serving(tmp_path) as (address, _), live_server.client(address) as player:
        await player.socket.send_bytes(png(np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8)))
        await player.until("image", size=[70, 60])
        await player.lockstep(seed=9, image="own", prompt="a red room")
        played = [await player.step(*keys) for keys in (["w"], ["w", "right"], [])]
        await player.send("log")
        content = (await player.until("log"))["content"]
    path = tmp_path / "keys.json"
    path.write_text(json.dumps(content))
    log = key_logs.read(path)
    assert (log.model, log.start.seed) == (model.world.identity, 9)
    # As `generate --keys` does, in a new session.
    run = model.world.run
    system = model.world.variant(log.start)
    check, frames = key_logs.Check(log), list[np.ndarray]()
    generation.roll_out(
        system.session(run.model, run.encoders),
        log.actions(run.system, run.config, "keys.json"),
        mesh=run.mesh,
        image=log.start.image,
        prompt=log.start.prompt,
        seed=log.start.seed,
        take=check.before(frames.append),
    )
    np.testing.assert_array_equal(np.concatenate(frames), np.concatenate(played))
    assert check.describe(run) == "all 3 steps have the same frames as when they were played"
    changed = dataclasses.replace(log, entries=[dataclasses.replace(entry, frames="0") for entry in log.entries])
    check = key_logs.Check(changed)
    check.before(frames.append)(frames[0])
    assert "differ from step 1 of 1 on" in check.describe(run)


@in_loop
async def test_a_recording_is_an_episode(tmp_path: pathlib.Path) -> None:
    async with live_server.serving(tmp_path) as (address, _), live_server.client(address) as player:
        await player.lockstep(prompt="blue rooms")
        await player.send("record", on=True)
        assert "play at least one step" in (await player.until("error"))["text"]
        first = await player.step("w")
        await player.send("record", on=True)
        await player.until("recording", on=True)
        played = [first[-1:], await player.step("w", "right"), await player.step("up")]
        await player.send("record", on=False)
        facts = await player.until("recording", on=False)
        assert (await get(address, f"recordings/{facts['name']}.mp4"))[0] == 200
    folder = tmp_path / "episodes"
    episode = episodes.read_episode(folder, facts["name"])
    assert episode.frames.shape == (33, *live_server.frame_shape())
    assert np.abs(episode.frames.astype(int) - np.concatenate(played)).mean() < 4
    assert episode.caption == "blue rooms"
    assert episode.actions == ["none"] + 16 * ["forward+yaw_right"] + 16 * ["pitch_up"]
    assert episode.fps == 16
    # The motion of the keys, per frame: 0.24 units and 8 degrees per latent.
    steps = poses.steps(episode.w2c)[1:]
    turns = np.degrees(np.arctan2(steps[:, 0, 2], steps[:, 2, 2]))
    np.testing.assert_allclose(turns[:16], 2, atol=0.01)
    np.testing.assert_allclose(np.linalg.norm(steps[:16, :3, 3], axis=1), 0.06, atol=0.001)
    np.testing.assert_allclose(turns[16:], 0, atol=0.3)
    assert [path.name for path in folder.iterdir() if path.name.endswith(".partial")] == []


@in_loop
async def test_a_lost_connection_continues(tmp_path: pathlib.Path) -> None:
    async with live_server.serving(tmp_path, seats=1) as (address, directing):
        async with live_server.client(address) as player:
            identity = player.messages[0]["id"]
            await player.lockstep(seed=3)
            await player.step("w")
        async with live_server.client(address, identity) as player:
            assert player.messages[0]["resumed"] is True
            assert player.messages[0]["start"]["seed"] == 3
            await player.send("format", name="raw")
            await player.step("w")
            assert player.messages[-1]["step"] == 1
            # The earlier connection may only look open.
            async with live_server.client(address, identity) as other:
                assert other.messages[0]["id"] == identity
                assert (await asyncio.wait_for(player.socket.receive(), 30)).type is aiohttp.WSMsgType.CLOSE
                await other.step("w")
                assert other.messages[-1]["step"] == 2
        assert len(directing.players) == 1


@in_loop
async def test_a_gone_player_makes_room(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(director, "GRACE_SECONDS", 0.1)
    async with live_server.serving(tmp_path, seats=1) as (address, directing):
        async with live_server.client(address) as player:
            await player.until("computed")
            async with live_server.client(address) as other:
                await other.until("seat", place=1, waiting=1)
                await player.socket.close()
                await other.until("seat", place=0, waiting=0)
                await other.until("computed")
        while directing.players:
            await asyncio.sleep(0.05)


@in_loop
async def test_two_players_have_their_own_worlds(tmp_path: pathlib.Path) -> None:
    async with (
        live_server.serving(tmp_path) as (address, _),
        live_server.client(address) as a,
        live_server.client(address) as b,
    ):
        await a.lockstep(seed=1)
        await b.lockstep(seed=1)
        first = [await a.step("w"), await b.step("w")]
        np.testing.assert_array_equal(*first)
        second = [await a.step("right"), await b.step("left")]
        assert (second[0] != second[1]).any()
        async with live_server.client(address) as c:
            await c.until("seat", place=1, playing=2, waiting=1)
        # Live, both get turns.
        for player in (a, b):
            await player.resume()
        for number in range(2, 5):
            await a.until("computed", step=number)
            await b.until("computed", step=number)


@in_loop
async def test_time_is_over_while_others_wait(tmp_path: pathlib.Path) -> None:
    async with live_server.serving(tmp_path, seats=1, turn_seconds=0.3) as (address, _):
        a, b = live_server.client(address), live_server.client(address)
        async with a as first, b as second:
            await second.until("computed")
            assert "your time is over" in (await first.until("notice"))["text"]
            await first.until("seat", place=1)
            await first.until("computed")


@in_loop
async def test_a_slow_player_holds_nothing(tmp_path: pathlib.Path) -> None:
    async with live_server.serving(tmp_path) as (address, directing), live_server.client(address) as player:
        # It receives, but never reports what it has shown.
        (state,) = directing.players.values()
        while not state.stalled:
            await player.receive(acknowledge=False)
        with contextlib.suppress(TimeoutError):
            while True:
                await asyncio.wait_for(player.receive(acknowledge=False), 2)
        assert state.sent < 64
        assert state.pacer.waiting <= 32
        steps = len(state.entries)
        assert steps < 6
        # It plays on when it reports again.
        await player.send("shown", frame=state.sent)
        await player.until("computed", step=steps)


@in_loop
async def test_floods_and_wrong_messages(tmp_path: pathlib.Path) -> None:
    async with live_server.serving(tmp_path) as (address, _):
        async with live_server.client(address) as player:
            await player.lockstep()
            wrong = [
                ("nonsense", {}, "has the type 'nonsense'"),
                ("reset", {"image": "none"}, "there is no image 'none'"),
                ("reset", {"image": "own"}, "send an image first"),
                ("reset", {"steps": 0}, "'steps' is 0"),
                ("prompt", {"text": "x"}, "can only change with a reset"),
                ("log", {}, "play at least one step"),
            ]
            for kind, values, text in wrong:
                await player.send(kind, **values)
                assert text in (await player.until("error"))["text"]
            await player.socket.send_bytes(b"not an image")
            assert "cannot be read" in (await player.until("error"))["text"]
            await player.socket.send_bytes(png(np.zeros((5, 5, 3), np.uint8)))
            assert "too fast" in (await player.until("error"))["text"]
            assert (await player.step("w")).shape == (13, *live_server.frame_shape())
            with contextlib.suppress(ConnectionError):
                for _ in range(limits.PLAY_BURST + 50):
                    await player.send("keys", held=[])
            while not player.socket.closed:
                await asyncio.wait_for(player.socket.receive(), 30)
            assert player.socket.close_code == 1008
        async with live_server.client(address) as player:
            # The server hangs up while it is sent.
            with contextlib.suppress(ConnectionError):
                await player.socket.send_bytes(bytes(limits.PLAY_IMAGE_BYTES + 100))
            while not player.socket.closed:
                await asyncio.wait_for(player.socket.receive(), 30)
            assert player.socket.close_code in (1006, 1009)


@in_loop
async def test_all_places_taken(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PLAY_CONNECTIONS", 1)
    async with live_server.serving(tmp_path) as (address, _):
        async with live_server.client(address):
            status, page, headers = await get(address)
            assert (status, headers["Retry-After"]) == (503, "30")
            assert b"All places are taken" in page
            assert (await get(address, "socket"))[0] == 503
        assert (await get(address))[0] == 200


@in_loop
async def test_only_this_machine_or_a_token(tmp_path: pathlib.Path) -> None:
    async with live_server.serving(tmp_path) as (address, _):
        assert "token" not in address
        # A name that a stranger's page was given for this address, and that page itself.
        assert (await get(address, headers={"Host": "evil.example"}))[0] == 403
        for origin in ("http://evil.example", "null"):
            assert (await get(address, "socket", headers={"Origin": origin}))[0] == 403
    async with live_server.serving(tmp_path, token="secret") as (address, _):
        assert address.endswith("/?token=secret")
        bare = address.partition("?")[0]
        for path in ("", "page/app.js", "images/view-1.png", "socket"):
            status, text, _ = await get(bare, path)
            assert (status, b"token is missing or wrong" in text) == (403, True)
            assert (await get(f"{bare}?token=secre", path))[0] == 403
        status, _, headers = await get(address)
        assert status == 200
        assert {"HttpOnly", "SameSite=Strict"} <= set(headers["Set-Cookie"].split("; "))
        assert (await get(bare, "page/app.js", cookies={"token": "secret"}))[0] == 200
        async with live_server.client(address) as player:
            assert player.messages[0]["type"] == "welcome"


def test_a_host_that_others_reach_has_a_token() -> None:
    anything: Any = None
    assert server.Server(anything, host="127.0.0.1", port=0).token == ""
    tokens = {server.Server(anything, host="0.0.0.0", port=0).token for _ in range(2)}
    assert len(tokens) == 2
    assert all(len(token) >= 20 for token in tokens)


@in_loop
async def test_a_failing_model_ends_nobody(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with live_server.serving(tmp_path) as (address, directing), live_server.client(address) as player:
        await player.lockstep()
        (state,) = directing.players.values()
        assert state.game is not None

        def fail(*_: Any) -> None:
            raise RuntimeError("out of memory")

        state.game.generate = fail  # type: ignore[assignment, method-assign]
        await player.send("step")
        assert "out of memory" in (await player.until("error"))["text"]
        del state.game.generate
        await player.lockstep()
        assert (await player.step()).shape == (13, *live_server.frame_shape())
    assert "RuntimeError" in capsys.readouterr().err


@in_loop
async def test_more_settings_than_are_compiled(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PLAY_VARIANTS", 0)
    async with live_server.serving(tmp_path) as (address, _), live_server.client(address) as player:
        await player.lockstep()
        await player.send("reset", steps=7)
        assert "choose earlier ones" in (await player.until("error"))["text"]
        await player.send("reset", steps=None)
        await player.until("started")


async def answered(player: live_server.Client, question: int) -> list[dict[str, Any]]:
    """Return all parts of an answer."""
    parts = [await player.until("answer", question=question)]
    while not parts[-1]["done"]:
        parts.append(await player.until("answer", question=question))
    return parts


@in_loop
async def test_answers_about_the_frame_that_is_shown(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One token per turn.
    monkeypatch.setattr(questions, "_SLICE", 0.0)
    model = tiny_text_model.answerer()
    async with (
        live_server.serving(tmp_path, answerer=model) as (address, directing),
        live_server.client(address) as player,
    ):
        assert player.messages[0]["questions"] is True
        await player.lockstep(seed=1)
        await player.send("ask", text="What is this?")
        assert "ask about a newer one" in (await player.until("error"))["text"]
        frames = np.concatenate([await player.step("w"), await player.step("right")])
        for question, frame in enumerate((0, 28)):
            await player.send("ask", text=" Where is the wall? ", frame=frame)
            assert await player.until("asked") == {"type": "asked", "question": question, "frame": frame}
            parts = await answered(player, question)
            expected = model._run.answer("Where is the wall?", [frames[frame]])
            assert "".join(part["text"] for part in parts) == expected
            assert len(expected) > 5
            # The text comes while it is decoded.
            assert len(parts) > 5
            assert not parts[-1]["stopped"]
            assert 0 < parts[-1]["tokens"] <= tiny_text_model.TOKENS
        # A new question ends the answer to the one before, and one without text only ends it.
        monkeypatch.setattr(answers.Answer, "advance", lambda self, seconds: "word ")
        await player.send("ask", text="first?", frame=28)
        await player.until("answer", question=2, text="word ")
        # Steps have turns, too, and an answer continues meanwhile.
        assert (await player.step("w")).shape[0] == 16
        await player.send("ask", text="second?", frame=28)
        assert (await answered(player, 2))[-1]["stopped"]
        await player.until("answer", question=3, text="word ")
        await player.send("ask", text=" ")
        assert (await answered(player, 3))[-1]["stopped"]
        await player.send("ask", text="x" * (limits.PLAY_QUESTION + 1))
        assert "'text'" in (await player.until("error"))["text"]
        # A defect ends the answer alone.
        monkeypatch.setattr(answers.Answer, "advance", lambda self, seconds: 1 // 0)
        await player.send("ask", text="third?")
        assert "cannot be answered" in (await player.until("error"))["text"]
        assert (await answered(player, 4))[-1]["stopped"]
        assert (await player.step("w")).shape[0] == 16
        # An answer ends with the connection.
        monkeypatch.setattr(answers.Answer, "advance", lambda self, seconds: "word ")
        await player.send("ask", text="fourth?")
        await player.until("answer", question=5, text="word ")
        await player.socket.close()
        (state,) = directing.players.values()
        while state.socket is not None:
            await asyncio.sleep(0.01)
        assert directing._questions.due(directing.players.values()) == []


@in_loop
async def test_servers_without_a_second_model_refuse(tmp_path: pathlib.Path) -> None:
    async with live_server.serving(tmp_path) as (address, _), live_server.client(address) as player:
        assert player.messages[0]["questions"] is False
        await player.send("ask", text="What is this?")
        assert "start it with --ask" in (await player.until("error"))["text"]
