"""Messages between server and players."""

import json

import numpy as np
import pytest

from jworld.play import protocol
from jworld.systems import key_logs, live


def picture(width: int = 20, height: int = 12) -> np.ndarray:
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3)
    return ramp.astype(np.uint8)


@pytest.mark.parametrize("kind", protocol.FORMATS)
def test_frames_survive(kind: str) -> None:
    image = picture()
    frame = protocol.Frame(
        step=70_000, frame=300_000, action="w+right", kind=kind, size=(20, 12), content=protocol.encode(image, kind)
    )
    found, sent = protocol.unpack(frame.pack(1234.5))
    assert (found, sent) == (frame, 1234.5)
    difference = np.abs(protocol.pixels(found).astype(int) - image).max()
    assert difference == 0 if kind in (protocol.RAW, protocol.PNG) else difference < 40
    with pytest.raises(ValueError, match="version 9"):
        protocol.unpack(b"\x09" + frame.pack(0.0)[1:])


def test_the_smallest_format_is_chosen_if_it_is_fast() -> None:
    plain, noise = np.zeros((64, 96, 3), np.uint8), np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    times = iter(range(100))
    assert protocol.smallest(plain, 16, clock=lambda: 0.0) in (protocol.PNG, protocol.WEBP)
    assert protocol.smallest(noise, 16, clock=lambda: 0.0) in (protocol.JPEG, protocol.WEBP)
    # Every format takes a second: the fastest one remains.
    assert protocol.smallest(plain, 16, clock=lambda: next(times)) == protocol.JPEG


@pytest.mark.parametrize(
    "message",
    [
        {"type": "keys", "held": ["w", "right"]},
        {"type": "step"},
        {"type": "step", "held": []},
        {"type": "reset", "seed": 4_294_967_295, "steps": None, "guidance": 1.5, "script": [["w", 3], ["none", 1]]},
        {"type": "shown", "frame": 3},
    ],
)
def test_messages(message: dict) -> None:
    found = protocol.parse(json.dumps(message))
    assert {"type": found.kind, **found.values} == message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not JSON"),
        ("[" * 60_000, "not JSON"),
        ("[]", "has the type 'None'"),
        ('{"type": ["keys"]}', "has the type"),
        ('{"type": "keys"}', "the key 'held' is missing"),
        ('{"type": "keys", "held": "w"}', "'held' is 'w'"),
        ('{"type": "keys", "held": [], "x": 1}', "there is no key 'x'"),
        ('{"type": "shown", "frame": true}', "'frame' is 'True'"),
        ('{"type": "shown", "frame": 5000000000}', "'frame'"),
        ('{"type": "reset", "script": [["w", 0]]}', "'script'"),
        ('{"type": "reset", "script": [["w", 90000], ["w", 90000]]}', "'script'"),
        ('{"type": "prompt", "text": "' + "x" * 2001 + '"}', "'text'"),
        (json.dumps({"type": "prompt", "text": "x" * 70_000}), "expected at most 65,536"),
    ],
)
def test_wrong_messages(text: str, problem: str) -> None:
    with pytest.raises(protocol.MessageError, match=problem.replace("[", r"\[")):
        protocol.parse(text)


def test_a_reset_keeps_what_it_leaves_out() -> None:
    before = key_logs.Start(prompt="a", seed=3, steps=5, guidance=2.0)
    assert protocol.start({"seed": 4}, before, None) == key_logs.Start(prompt="a", seed=4, steps=5, guidance=2.0)
    assert protocol.start({"steps": None}, before, None).steps is None
    for wrong in ({"steps": 0}, {"steps": 1000}, {"guidance": float("nan")}, {"guidance": -1}):
        with pytest.raises(protocol.MessageError, match="reset: "):
            protocol.start(wrong, before, None)


def test_actions() -> None:
    keys = live.CAMERA_KEYS
    assert live.effective(keys, ["right", "w", "unknown", "s"]) == ["right"]
    assert live.joined(live.effective(keys, ["left", "w"])) == "w+left"
    assert live.split(keys, "none") == []
    assert live.split(keys, "w+left") == ["w", "left"]
    for wrong in ("left+w", "w+s", "x", ""):
        with pytest.raises(ValueError, match="is not an action"):
            live.split(keys, wrong)
