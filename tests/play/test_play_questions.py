"""Questions about the present frame: a tiny TheWorld answers next to a player's steps, in turns."""

import pathlib
import types
from typing import Any

import numpy as np
import pytest
import tiny_systems
import tiny_text_model

from jworld import systems
from jworld.play import answers, players, protocol, questions
from jworld.systems import runs
from jworld.utils import config as run_config
from jworld.utils import errors

ROOT = pathlib.Path(__file__).parents[2]


def test_a_flood_of_questions_gets_every_second_turn() -> None:
    anything: Any = types.SimpleNamespace(last_turn=0, send=lambda *_, **__: None)
    asking, turns, found = questions.Asking(anything), players.Turns[Any](), list[bool]()
    for _ in range(6):
        asking.begin(anything, 0)
        asking.answer = None
        found.append(turns.next([anything, asking]) is asking)
    assert sum(found) == 3


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
