"""Questions about the present frame: a tiny TheWorld answers next to a player's steps, in turns."""

import asyncio
import pathlib
import types
from typing import Any

import live_server
import numpy as np
import pytest
import tiny_systems
import tiny_text_model

from jworld import systems
from jworld.play import answers, players, protocol, questions
from jworld.systems import runs
from jworld.utils import config as run_config
from jworld.utils import errors, limits

ROOT = pathlib.Path(__file__).parents[2]


async def answered(player: live_server.Client, question: int) -> list[dict[str, Any]]:
    """Return all parts of an answer."""
    parts = [await player.until("answer", question=question)]
    while not parts[-1]["done"]:
        parts.append(await player.until("answer", question=question))
    return parts


def test_answers_about_the_frame_that_is_shown(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One token per turn.
    monkeypatch.setattr(questions, "_SLICE", 0.0)
    model = tiny_text_model.answerer()

    async def test() -> None:
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
            # Steps have turns, too, and an answer goes on meanwhile.
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

    asyncio.run(test())


def test_a_flood_of_questions_gets_every_second_turn() -> None:
    anything: Any = types.SimpleNamespace(last_turn=0, send=lambda *_, **__: None)
    asking, turns, found = questions.Asking(anything), players.Turns[Any](), list[bool]()
    for _ in range(6):
        asking.begin(anything, 0)
        asking.answer = None
        found.append(turns.next([anything, asking]) is asking)
    assert sum(found) == 3


def test_servers_without_a_second_model_refuse(tmp_path: pathlib.Path) -> None:
    async def test() -> None:
        async with live_server.serving(tmp_path) as (address, _), live_server.client(address) as player:
            assert player.messages[0]["questions"] is False
            await player.send("ask", text="What is this?")
            assert "start it with --ask" in (await player.until("error"))["text"]

    asyncio.run(test())


def test_a_model_of_text_alone_is_refused() -> None:
    model = tiny_text_model.answerer()
    config = run_config.load_recipe(str(ROOT / "configs" / "theworld.py"))
    with config.unlocked():
        config.model.update({"num_layers": 1, "vision_layers": 0})
        config.model.world = None
        config.data.clip.images = 0
    system = systems.create(config)
    run = runs.Run(config, system, tiny_systems.make_model(system), model._run.encoders, None, model._run.mesh)
    with pytest.raises(errors.UserError, match="about text alone"):
        answers.Answerer(run).warm(np.zeros((48, 64, 3), np.uint8))


def test_messages_of_questions() -> None:
    assert protocol.parse('{"type": "ask", "text": "x", "frame": 3}').values == {"text": "x", "frame": 3}
    for wrong in ('{"type": "ask"}', '{"type": "ask", "text": 3}', '{"type": "ask", "text": "x", "frame": -1}'):
        with pytest.raises(protocol.MessageError):
            protocol.parse(wrong)
