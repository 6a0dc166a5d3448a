"""The command `jworld play`: mistakes, and a whole session with the example, a recording and a replay."""

import asyncio
import pathlib
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from typing import NoReturn

import commands
import live_server
import numpy as np
import pytest
import tiny_run

from jworld.data.recording import doom
from jworld.play import __main__ as command
from jworld.play import images, worker
from jworld.systems import runs
from jworld.utils import config as run_config
from jworld.utils import errors

STARTER = str(commands.ROOT / "assets" / "starter")


def sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        command.main(arguments)
    assert ended.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return printed


def test_mistakes(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--checkpoint" in sentence([], capsys)
    assert "expected an integer from 0 to 65535, got '70000'" in sentence(
        [f"--checkpoint={STARTER}", "--port=70000"], capsys
    )
    assert "expected an integer from 1 to 32, got '1000000000'" in sentence(
        [f"--checkpoint={STARTER}", "--players=1000000000"], capsys
    )
    # Found before the model is loaded and compiled.
    monkeypatch.setattr(runs, "load", None)
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        assert "cannot be used (Address already in use)" in sentence(
            [f"--checkpoint={STARTER}", f"--port={port}"], capsys
        )
    assert "--host a b cannot be used" in sentence([f"--checkpoint={STARTER}", "--host=a b"], capsys)
    assert "none" in sentence([f"--checkpoint={tmp_path / 'none'}"], capsys)
    assert f"--ask {STARTER}: the checkpoint is of the system 'worldplay', which does not answer" in sentence(
        [f"--checkpoint={STARTER}", f"--ask={STARTER}"], capsys
    )
    (tmp_path / "text.png").write_text("text")
    assert "text.png cannot be read" in sentence(
        [f"--checkpoint={STARTER}", f"--image={tmp_path / 'text.png'}"], capsys
    )
    assert "num_step" in sentence([f"--checkpoint={STARTER}", "--config.sample.rollout.num_step=3"], capsys)
    assert "--world has no effect with --image" in sentence(
        [f"--checkpoint={STARTER}", "--world=rooms", f"--image={tmp_path / 'text.png'}"], capsys
    )
    with monkeypatch.context() as patch:
        patch.setattr(doom, "available", lambda: False)
        assert "pip install 'jworld[demo]'" in sentence([f"--checkpoint={STARTER}", "--world=doom"], capsys)
    (tmp_path / "file").write_text("")
    assert "is not a folder" in sentence([f"--checkpoint={STARTER}", f"--recordings={tmp_path / 'file' / 'x'}"], capsys)
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'jworld[play]'" in sentence([f"--checkpoint={STARTER}"], capsys)


def test_the_first_images_are_of_the_given_world(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def rendered(config: object, size: tuple[int, int], *, source: str) -> NoReturn:
        raise errors.UserError(f"views of {source or 'the data'} at {size}")

    monkeypatch.setattr(doom, "engine", lambda: None)
    monkeypatch.setattr(runs, "load", lambda *arguments, **options: None)
    monkeypatch.setattr(worker, "World", lambda run, decoder: types.SimpleNamespace(size=(128, 96)))
    monkeypatch.setattr(images, "rendered", rendered)
    arguments = [f"--checkpoint={STARTER}", "--port=0"]
    assert "views of doom at (128, 96)" in sentence([*arguments, "--world=doom"], capsys)
    assert "views of the data at (128, 96)" in sentence(arguments, capsys)


def test_a_model_that_cannot_be_steered_is_refused_before_it_is_loaded(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = run_config.load_recipe(str(commands.ROOT / "configs" / "matrix_lora.py:base"))
    run_config.save(config, tmp_path)
    assert "not steered while it runs" in sentence([f"--checkpoint={tmp_path}"], capsys)


class Command:
    """A running `jworld play`, and what it has printed."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jworld.play", "--checkpoint", STARTER, "--port", "0", *arguments],
            cwd=commands.ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: list[str] = []
        self._ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        assert self._ready.wait(400), self.lines
        (self.address,) = (re.search(r"play at (\S+)", line)[1] for line in self.lines if "play at" in line)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if "play at" in line or line.startswith("error"):
                self._ready.set()
        self._ready.set()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Command, pathlib.Path]]:
    folder = tmp_path_factory.mktemp("recordings")
    running = Command("--recordings", str(folder), "--players", "2")
    yield running, folder
    running.process.kill()


@pytest.mark.slow
@pytest.mark.e2e
def test_the_example_steers_it(server: tuple[Command, pathlib.Path], tmp_path: pathlib.Path) -> None:
    running, _ = server
    assert any("2 players, with" in line for line in running.lines)
    example = commands.ROOT / "examples" / "play_client.py"
    made = subprocess.run(
        [sys.executable, str(example), running.address], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert made.returncode == 0, made.stderr
    assert "walk.mp4: 141 frames" in made.stdout
    assert (tmp_path / "walk.mp4").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.e2e
def test_recordings_become_records(server: tuple[Command, pathlib.Path], tmp_path: pathlib.Path) -> None:
    running, folder = server

    async def record() -> None:
        async with live_server.client(running.address) as player:
            for number in range(2):
                await player.lockstep(seed=number)
                await player.step()
                await player.send("record", on=True)
                await player.until("recording", on=True)
                for keys in (["w"], ["right"], ["w", "left"], ["up"]):
                    await player.step(*keys)
                await player.send("record", on=False)
                await player.until("recording", on=False)

    asyncio.run(record())
    made = commands.run(
        "jworld.precompute",
        f"--input={folder / 'episodes'}",
        f"--output={tmp_path / 'records'}",
        "--channels=8",
    )
    assert made.returncode == 0, made.stdout + made.stderr
    validated = commands.run("jworld.precompute.validate", str(tmp_path / "records"))
    assert validated.returncode == 0, validated.stdout + validated.stderr


@pytest.mark.slow
@pytest.mark.e2e
def test_ctrl_c_ends_it_and_a_used_port_is_named(server: tuple[Command, pathlib.Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        made = commands.run("jworld.play", f"--checkpoint={STARTER}", f"--port={port}", timeout=400)
    assert f"--port {port} of --host 127.0.0.1 cannot be used" in commands.one_sentence(made)
    running, _ = server
    running.process.send_signal(signal.SIGINT)
    assert running.process.wait(30) == 130
    assert "Traceback" not in "".join(running.lines)


@pytest.mark.slow
def test_ten_thousand_frames_in_flat_memory(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny model plays 10,000 frames; after the first 2,000 the process grows by less than 10 MB."""
    run = runs.load(tiny_run.make_run(tmp_path / "tiny"))
    live_server.warm.cache_clear()
    monkeypatch.setattr(live_server.jworld, "load", lambda _: run)
    live_server.warm(players=1)
    grown: list[tuple[int, int]] = []

    async def play() -> None:
        async with (
            live_server.serving(tmp_path / "recordings", seats=1) as (address, directing),
            live_server.client(address) as player,
        ):
            await player.lockstep()
            (state,) = directing.players.values()
            state.game.session.latents.history = 256
            while not player.frames or player.frames[-1].frame < 10_000:
                await player.step(*(["w"], ["right"], ["w", "left"])[len(grown) % 3])
                player.frames, player.sent, player.messages = player.frames[-1:], [], player.messages[:1]
                grown.append((player.frames[-1].frame, _resident()))

    try:
        asyncio.run(play())
    finally:
        live_server.warm.cache_clear()
    settled = np.median([size for frame, size in grown if 2_000 < frame < 2_500])
    final = np.median([size for frame, size in grown if frame > 9_500])
    assert final - settled < 10e6, (settled, final)


def _resident() -> int:
    """Return the bytes of this process in memory."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
