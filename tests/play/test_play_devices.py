"""`jworld play --devices 2`: steps are decoded on a second device while later ones are generated."""

import asyncio
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import live_server
import numpy as np
import pytest

from jworld import systems
from jworld.play import worker
from jworld.systems import live
from jworld.utils import config as run_config
from jworld.utils import errors

ROOT = pathlib.Path(__file__).parents[2]
KEYS = (["w"], ["right"], [], ["w", "left"], ["s"])


def live_system(recipe: str) -> live.LiveSystem:
    config = run_config.load_recipe(str(ROOT / "configs" / recipe))
    with config.unlocked():
        config.init_from = ""
    return live.live_system(systems.create(config), config)


def test_devices_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    walk, stream = map(live_system, ("ar_mem.py:rooms", "matrix_swin_dpm.py"))
    windows = live_system("cosmos_video2world.py:tiny_action")
    assert worker.second_device(1, windows) is None
    assert worker.second_device(2, walk) == worker.second_device(2, stream) == jax.local_devices()[1]
    with pytest.raises(errors.UserError, match="continues the decoded frames"):
        worker.second_device(2, windows)
    one = jax.local_devices()[:1]
    monkeypatch.setattr(jax, "local_devices", lambda: one)
    with pytest.raises(errors.UserError, match=r"--devices is 2, but this machine has one device \(cpu\)"):
        worker.second_device(2, walk)


@pytest.mark.slow
def test_frames_are_those_of_one_device(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps that overlap have the same frames, in order, as steps on one device; a reset waits for those before."""
    one = live_server.warm()
    both = worker.World(one.world.run, decoder=jax.local_devices()[1])
    (first, second), events = [worker.Game(both) for _ in range(2)], list[str]()
    one.thread.submit(both.warm, [first, second], one.start).result()
    assert both.identity == one.world.identity
    assert first.session._decoder._cache is not None  # type: ignore[attr-defined]
    leaves = jax.tree.leaves(first.session._decoder._cache)  # type: ignore[attr-defined]
    assert {device for leaf in leaves for device in leaf.devices()} == {jax.local_devices()[1]}
    game = one.games[0]
    expected = one.thread.submit(lambda: [game.start(one.start), *map(game.step, KEYS)][1:]).result()
    warm = live_server.Warm(both, [first], one.first, one.start, one.thread)
    monkeypatch.setattr(live_server, "warm", lambda: warm)
    generate, decode = first.generate, first.decode

    def generating(keys: list[str], prompt: str | None = None) -> Any:
        events.append("generate")
        return generate(keys, prompt)

    def decoding(generated: worker.Generated, take: Callable[[worker.Part], None]) -> worker.Step:
        found = decode(generated, take)
        events.append("decoded")
        return found

    first.generate, first.decode = generating, decoding  # type: ignore[assignment, method-assign]

    async def test() -> None:
        async with (
            live_server.serving(tmp_path, seats=1) as (address, directing),
            live_server.client(address) as player,
        ):
            await player.lockstep()
            (state,) = directing.players.values()
            for _ in range(2):
                script = [["+".join(keys) or "none", 1] for keys in KEYS]
                await player.send("reset", script=script)
                await player.until("started")
                player.frames, events[:] = [], []
                state.paused = False
                directing._changed.set()
                while len(player.frames) < sum(len(step.frames) for step in expected):
                    found = await player.receive()
                    if not isinstance(found, dict):
                        await player.send("shown", frame=found.frame)
                frames = player.frames[: sum(len(step.frames) for step in expected)]
                state.paused = True
                assert [frame.frame for frame in frames] == list(range(len(frames)))
                pixels = np.stack([live_server.protocol.pixels(frame) for frame in frames])
                np.testing.assert_array_equal(pixels, np.concatenate([step.frames for step in expected]))
                # The second step is generated before the first one is decoded.
                assert events.index("decoded") > 1
            # With another reset, while steps are computed.
            state.paused = False
            await player.send("reset", seed=0)
            await player.until("started")
            assert state.computing == 0 or not state.entries

    asyncio.run(test())
