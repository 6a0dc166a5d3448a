"""Models of other systems on the page: The Matrix' stream, and an action model of Cosmos-Predict2."""

import asyncio
import pathlib
from typing import Any

import jax
import live_server
import pytest
import tiny_systems
from page import LIT, MARKS, click, playing

from jworld import systems
from jworld.encoders import choices, model_encoders
from jworld.parallel import mesh
from jworld.systems import runs
from jworld.utils import config as run_config

pytestmark = MARKS
ROOT = pathlib.Path(__file__).parents[2]
#: Models of random weights need no data set.
SMALL = {"model.width": 48, "model.num_layers": 1}
MATRIX = {**SMALL, "sample.rollout.num_steps": 8, "init_from": "", "model.control_layers": (0, 1)}
COSMOS = {**SMALL, "data.clip.window_frames": 3, "data.encoding.clip_frames": 9, "model.action_dim": 14}


def made(recipe: str, changes: dict[str, Any]) -> live_server.Warm:
    config = run_config.load_recipe(str(ROOT / "configs" / recipe))
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    system: Any = systems.create(config)
    expected = system.manifest_expectations()
    given = choices.EncoderOverrides(
        autoencoder=str(ROOT / "assets" / "starter" / "encoders" / "autoencoder.safetensors"),
        text_encoder=f"hashed-words:{expected['text_encoder.dim']}",
    )
    encoders = model_encoders.open_given(given, expected, fps=system.fps)
    one = mesh.make_mesh(devices=jax.devices()[:1])
    return live_server.warm_run(runs.Run(config, system, tiny_systems.make_model(system), encoders, None, one))


@pytest.mark.parametrize("name", ["matrix", "cosmos"])
def test_keys_and_controls_of_the_system(name: str, tmp_path: pathlib.Path) -> None:
    recipe, changes, caps, key = {
        "matrix": ("matrix_swin_dpm.py", MATRIX, "B,D,L,N,R", ("KeyL", "L")),
        "cosmos": ("cosmos_video2world.py:tiny_action", COSMOS, "a,d,down,left,right,s,up,w", ("KeyA", "a")),
    }[name]
    model = made(recipe, changes)
    delay = model.world.delay

    async def test() -> None:
        async with playing(tmp_path, model=model) as (page, _, directing):
            (player,) = directing.players.values()
            assert (
                await page.value("[...document.querySelectorAll('.key')].map((k) => k.dataset.name).sort().join()")
                == caps
            )
            assert await page.value("document.getElementById('memory').hidden")
            assert await page.value("document.getElementById('describe').hidden") == (name == "cosmos")
            await page.key(key[0], True)
            await page.until(f"{LIT.format('applied')} === '{key[1]}'")
            # A key is lit on the image that shows it, some steps after the one that it is pressed in.
            first = await page.value(f"[...play.state.ofStep].find(([step, keys]) => keys === '{key[1]}')[0]")
            assert await page.value("play.state.lastStep") >= first + delay - 1
            assert await page.until("play.state.latencies.length")
            await page.key(key[0], False)
            if name == "matrix":
                await page.value("document.getElementById('prompt').value = 'a green valley'")
                await click(page, "describe")
                while not any(entry.prompt == "a green valley" for entry in player.entries):
                    await asyncio.sleep(0.05)
            await click(page, "record")
            await page.until("document.getElementById('record').textContent === 'stop'")
            count = await page.value("play.state.count")
            await page.until(f"play.state.count > {count} + 20")
            await click(page, "record")
            await page.until("document.querySelector('#files a[download$=\".mp4\"]')?.download ?? ''")
            (video,) = directing.recordings.values()
            assert video.stat().st_size > 1000
            assert "video at" in await page.value("document.getElementById('notice').textContent")

    asyncio.run(test())
