"""Sessions that are steered by keys, of every video system, and models that cannot be."""

import dataclasses
import pathlib
from typing import Any

import jax
import ml_collections
import numpy as np
import pytest
import video_runs

from jworld import systems
from jworld.play import worker
from jworld.systems import generation, key_logs, live, runs
from jworld.systems.cosmos import hand
from jworld.systems.worldplay import latents
from jworld.utils import config as run_config
from jworld.utils import errors

ROOT = pathlib.Path(__file__).parents[2]
ACTION = (
    "cosmos_video2world.py:tiny_action",
    {"data.clip.window_frames": 3, "data.encoding.clip_frames": 9, "model.action_dim": 14},
    (),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("runs")


def played(
    game: worker.Game, start: key_logs.Start, keys: list[list[str]], prompts: dict[int, str]
) -> list[worker.Step]:
    game.start(start)
    return [game.step(held, prompts.get(number)) for number, held in enumerate(keys)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "first", "second", "frames"),
    [
        ("worldplay", ["w", "right"], ["left"], [13, 16, 16]),
        ("stream", ["D", "L"], ["B"], None),
        ("cosmos_action", ["w"], ["right"], [9, 8, 8]),
    ],
)
def test_a_log_of_keys_makes_the_same_frames(
    name: str,
    first: list[str],
    second: list[str],
    frames: list[int] | None,
    folder: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(video_runs.RUNS, "cosmos_action", ACTION)
    run = runs.load(video_runs.make(name, folder))
    world = worker.World(run)
    start = key_logs.Start(image=np.random.default_rng(1).integers(0, 256, (50, 60, 3), np.uint8), seed=4)
    game = worker.Game(world)
    world.warm([game], start)
    assert world.session_bytes > 0
    assert world.describes == (name == "stream")
    assert world.viewed == (name == "worldplay")
    prompts = {1: "a green room"} if world.describes else {}
    keys = [first, second, first]
    steps = played(game, start, keys, prompts)
    if frames is not None:
        assert [len(step.frames) for step in steps] == frames
    if name != "cosmos_action":
        # On two devices, steps are decoded while later ones are generated.
        split = worker.Game(worker.World(run, decoder=jax.local_devices()[1]))
        split.start(start)
        generated = [split.generate(held, prompts.get(number)) for number, held in enumerate(keys)]
        for part, step in zip(generated, steps, strict=True):
            np.testing.assert_array_equal(split.decode(part).frames, step.frames)
    # Other keys, other frames; a stream shows them some steps later.
    for other in ([second, first, second], [[], [], []]):
        assert (
            any((a.frames != b.frames).any() for a, b in zip(played(game, start, other, prompts), steps, strict=True))
            or name == "stream"
        )
    log = key_logs.KeyLog(model=world.identity, start=start, entries=[step.entry for step in steps])
    again = key_logs.parse(log.to_json())
    assert again.entries == log.entries
    check = key_logs.Check(again)
    generation.roll_out(
        run.session(),
        again.actions(run.system, run.config, "keys.json"),
        mesh=run.mesh,
        image=again.start.image,
        prompt=again.start.prompt,
        seed=again.start.seed,
        take=check.before(lambda frames: None),
    )
    assert check.describe(run) == "all 3 steps have the same frames as when they were played"


def config_of(recipe: str, **changes: Any) -> ml_collections.ConfigDict:
    config = run_config.load_recipe(str(ROOT / "configs" / recipe))
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("theworld.py", "which cannot be steered by keys"),
        ("autoencoder.py", "which cannot be steered by keys"),
        ("cosmos_video2world.py", "without actions, which cannot be steered"),
        ("matrix_lora.py:base", "not steered while it runs"),
        ("matrix_control.py", "not steered while it runs"),
    ],
)
def test_models_that_cannot_be_steered(recipe: str, message: str) -> None:
    config = config_of(recipe, init_from="")
    with pytest.raises(errors.UserError, match=message):
        live.live_system(systems.create(config), config)


@pytest.mark.parametrize("recipe", ["ar_mem.py:rooms", "matrix_swin_dpm.py", "cosmos_video2world.py:tiny_action"])
def test_keys_of_every_system(recipe: str) -> None:
    config = config_of(recipe, init_from="")
    system = live.live_system(systems.create(config), config)
    keys = system.live_keys()
    names = [key.name for key in keys]
    assert len(names) == len(set(names))
    codes = [code for key in keys for code in key.codes]
    assert len(codes) == len(set(codes))
    for key in keys:
        if key.opposite:
            assert next(other for other in keys if other.name == key.opposite).opposite == key.name
        assert system.held([key.name]).name == key.name
        assert key.axis == "" or key.axis[2] in "+-"
    assert system.held([]).name == "none"


def test_driving_tokens_of_keys() -> None:
    config = config_of("matrix_swin_dpm.py", init_from="")
    system = live.live_system(systems.create(config), config)
    keys = system.live_keys()
    for held, token in ((["D", "L"], "DL"), (["B"], "B"), (["R"], "NR"), ([], "N"), (["N"], "N")):
        assert system.held(live.effective(keys, held)).control == token


def test_motion_of_a_hand() -> None:
    np.testing.assert_allclose(hand.motion(["w", "right"]), [0.2, 0, 0, 0, 0, -1.0, 1.0])
    np.testing.assert_allclose(hand.motion(["q", "close"]), [0, 0, -0.2, 0, 0, 0, 0])


def test_a_log_that_is_none(tmp_path: pathlib.Path) -> None:
    start = key_logs.Start(prompt="a", seed=1)
    log = key_logs.KeyLog(model="x", start=start, entries=[key_logs.Entry(keys="w", prompt="b")])
    content = log.to_json()
    assert key_logs.parse(content) == log
    wrong = [
        ({"format": "other"}, "'format' is not"),
        ({"version": 2}, "'version' is 2"),
        ({"steps": []}, "at least one step"),
        ({"steps": [{"keys": 3}]}, "step 1 is"),
        ({"start": {**content["start"], "seed": "1"}}, "'seed' is '1'"),
        ({"start": {**content["start"], "image": "AAAA"}}, "'start.image' is not an image"),
        ({"start": {**content["start"], "image": 3}}, "'start.image' is not an image"),
    ]
    for change, message in wrong:
        with pytest.raises(ValueError, match=message):
            key_logs.parse({**content, **change})
    with pytest.raises(errors.UserError, match=r"none\.json"):
        key_logs.read(tmp_path / "none.json")
    config = config_of("matrix_swin_dpm.py", init_from="")
    with pytest.raises(errors.UserError, match=r"keys\.json: step 1: 'w' is not an action.*give the log of this model"):
        log.actions(systems.create(config), config, "keys.json")


def test_the_oldest_frames_are_forgotten() -> None:
    """The first chunk and the latest frames stay, in order."""
    rows = latents.GrowingArray((), np.int64)
    for start in range(0, 40, 4):
        rows.append(np.arange(start, start + 4))
    rows.remove(4, 12)
    assert rows.rows.tolist() == [0, 1, 2, 3, *range(16, 40)]
    rows.append(np.arange(40, 44))
    assert rows.rows[-5:].tolist() == [39, 40, 41, 42, 43]


@pytest.mark.slow
def test_a_session_longer_than_its_history(folder: pathlib.Path) -> None:
    """Before anything is forgotten the frames are the same; afterwards neither memory nor indices break."""
    run = runs.load(video_runs.make("worldplay", folder))
    world = worker.World(run)
    start = key_logs.Start(image=np.zeros((48, 64, 3), np.uint8))
    short, whole = worker.Game(world), worker.Game(world)
    for game in (short, whole):
        game.start(start)
    session: Any = short.session
    session.latents.history = 40
    views = []
    for number in range(20):
        keys = ["w"] if number % 3 else ["right"]
        steps = [game.step(keys) for game in (short, whole)]
        if number <= 10:
            np.testing.assert_array_equal(steps[0].frames, steps[1].frames)
        view, other = (step.view for step in steps)
        assert view is not None
        assert other is not None
        assert view.first == other.first == 4 * number
        np.testing.assert_array_equal(view.w2c, other.w2c)
        views.append(view)
        assert len(session.latents._latents.rows) <= 40
    context = views[-1].context
    assert context[:4] == [0, 1, 2, 3]
    assert context[-4:] == [72, 73, 74, 75]
    assert dataclasses.is_dataclass(views[-1])
